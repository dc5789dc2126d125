// Work shared out among thread blocks ("stream-K"), and what becomes of a tile's sums.
//
// out^T is cut into tiles of TILE_N weight rows by TILE_M batch rows, and a tile into steps of
// STEP_K elements of the inner dimension. All steps of all tiles, in that order, are dealt out
// evenly to the thread blocks, so every SM has the same share whatever the shape. A tile that
// several blocks share is summed, in a fixed order, by whichever of them is last.
#pragma once
#include "gemm_4bit_arguments.cuh"
#include "pipeline.cuh"

#define ACCUMULATORS (ROW_TILES * M_TILES * 4)

// The sums that a thread holds of its warp's ROW_TILES * 16 weight rows by TILE_M batch rows, as
// tensor cores leave them: lane 4 g + t has of each 16 x 8 the rows g and g + 8, columns 2 t and 2 t + 1.
typedef float Accumulators[ROW_TILES][M_TILES][4];

// The steps of all tiles, numbered along k first, then batch tiles, then weight tiles; and this
// block's share of them, [begin, end). The first `longer` blocks have one step more than the others.
struct Work {
  u32 k_steps, m_tiles, share, longer, begin, end;

  INLINE explicit Work(const Arguments& args) {
    k_steps = (u32)((args.k + STEP_K - 1) / STEP_K);
    m_tiles = (u32)((args.m + TILE_M - 1) / TILE_M);
    u32 total = (u32)((args.n + TILE_N - 1) / TILE_N) * m_tiles * k_steps;
    share = total / gridDim.x;
    longer = total % gridDim.x;
    begin = blockIdx.x * share + min(blockIdx.x, longer);
    end = begin + share + (blockIdx.x < longer);
  }

  INLINE u32 owner(u32 step) const {
    u32 in_longer = longer * (share + 1);
    return step < in_longer ? step / (share + 1) : longer + (step - in_longer) / share;
  }
};

// Where a step lies: its tile and its position along k.
struct Step {
  u32 tile, tile_n, tile_m, k_step;

  INLINE Step(u32 index, const Work& work) {
    tile = index / work.k_steps;
    k_step = index % work.k_steps;
    tile_n = tile / work.m_tiles;
    tile_m = tile % work.m_tiles;
  }

  // True if a new tile begins.
  INLINE bool advance(const Work& work) { return skip(1, work); }

  // So many steps further, at most to where the next tile begins.
  INLINE bool skip(u32 count, const Work& work) {
    if ((k_step += count) < work.k_steps) return false;
    k_step = 0;
    tile++;
    if (++tile_m == work.m_tiles) {
      tile_m = 0;
      tile_n++;
    }
    return true;
  }
};

// Adds to a counter in global memory; orders all this thread knows of before, and what it reads after.
INLINE u32 add_ordered(u32* counter, u32 count) {
  u32 before;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(count) : "memory");
  return before;
}

// Adds this block's share of a tile to those of others; true in the one block that then holds the
// whole sum. A block has at most one share that begins inside a tile and one that begins with it.
INLINE bool combine(const Arguments& args, Accumulators& acc, const Work& work, u32 tile, bool begins) {
  __shared__ u32 is_last;
  float* flat = &acc[0][0][0];
  bool holds = HOLDERS == CONSUMERS || threadIdx.x < HOLDERS;
  const i64 slot = ACCUMULATORS * HOLDERS;
  float* mine = args.partial + (2 * (i64)blockIdx.x + begins) * slot + threadIdx.x;
  if (holds) {
#pragma unroll
    for (int i = 0; i < ACCUMULATORS; i++) __stcg(mine + i * HOLDERS, flat[i]);
  }
  u32 first = work.owner(tile * work.k_steps), last = work.owner((tile + 1) * work.k_steps - 1);
  sync_threads(1, CONSUMERS);
  if (threadIdx.x == 0) {
    // With the barriers around, that holds for the other threads' reads and writes too.
    is_last = add_ordered(args.arrivals + first, 1) == last - first;
    if (is_last) args.arrivals[first] = 0;
  }
  sync_threads(1, CONSUMERS);
  if (!__shfl_sync(0xFFFFFFFFu, is_last, 0)) return false;
  if (!holds) return true;
  // In the order of the blocks, so that the result does not depend on who is last; some at a time,
  // so that their memory latencies overlap.
  const int group = ACCUMULATORS < 16 ? ACCUMULATORS : 16, batch = 64 / group < 8 ? 64 / group : 8;
#pragma unroll
  for (int start = 0; start < ACCUMULATORS; start += group) {
    const float* part = args.partial + (2 * (i64)first + 1) * slot + start * HOLDERS + threadIdx.x;
#pragma unroll
    for (int i = 0; i < group; i++) flat[start + i] = __ldcg(part + i * HOLDERS);
    for (u32 block = first + 1; block <= last; block += batch) {
      float parts[batch][group];
#pragma unroll
      for (int j = 0; j < batch; j++) {
        const float* source = args.partial + 2 * (i64)min(block + j, last) * slot + start * HOLDERS + threadIdx.x;
#pragma unroll
        for (int i = 0; i < group; i++) parts[j][i] = __ldcg(source + i * HOLDERS);
      }
#pragma unroll
      for (int j = 0; j < batch; j++) {
#pragma unroll
        for (int i = 0; i < group; i++) flat[start + i] += block + j <= last ? parts[j][i] : 0.0f;
      }
    }
  }
  return true;
}

