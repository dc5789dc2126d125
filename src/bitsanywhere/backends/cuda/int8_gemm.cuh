// int8 products for few rows of a: out = a @ b^T from int8 codes, on int8 tensor cores, b streaming.
//
// Weights (b) are the 16-row operand and activations (a) the 8-column one. Thread blocks share out
// the tiles of TILE_N weight rows by TILE_M activation rows; in a block, WARPS warps share out k,
// UNROLL chunks of 64 at a time, and add up their sums in shared memory, which in integers is exact in
// any order. Weights are not staged: lane t of the four that share a row reads 16 consecutive codes
// of the chunk, the same of both operands, and a sum does not care for the order of k. So each load
// is 16 bytes, and DEPTH loads of UNROLL chunks are on their way at any time, across tiles, while one
// more warp makes results of the last tile's sums.
#include "convert.cuh"

#define TILE_M (8 * M_TILES)
#define TILE_N 16
#define MULTIPLIERS (32 * WARPS)
// Of the one warp that finishes tiles.
#define THREADS 32
#define CHUNK 64
// A warp's additions to sums meet all banks.
#define SUM_STRIDE (TILE_N + 4)

#include "overlap.cuh"
#include "pipeline.cuh"

#include "int8_epilogue.cuh"

// d += a (16 x 32) * b (32 x 8). Lane 4 g + t holds rows g (d[0], d[1]) and g + 8, columns 2 t and 2 t + 1
// of d; of a the rows g (a[0], a[2]) and g + 8, of b column g, each register being four codes.
INLINE void multiply(int (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
  asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};" : "+r"(d[0]), "+r"(d[1]) : "r"(a0), "r"(b0));
  asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};" : "+r"(d[2]), "+r"(d[3]) : "r"(a1), "r"(b0));
  asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};" : "+r"(d[0]), "+r"(d[1]) : "r"(a2), "r"(b1));
  asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};" : "+r"(d[2]), "+r"(d[3]) : "r"(a3), "r"(b1));
#endif
}

// The 16 codes of a row from position at on, zero beyond k. streamed: read once only.
template <bool STREAMED>
INLINE uint4 load_codes(const i8* row, i64 at, i64 k) {
#if ALIGNED
  uint4 codes = make_uint4(0, 0, 0, 0);
  if (at < k) {
    if (STREAMED)
      asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                   : "=r"(codes.x), "=r"(codes.y), "=r"(codes.z), "=r"(codes.w)
                   : "l"(row + at));
    else
      codes = *reinterpret_cast<const uint4*>(row + at);
  }
  return codes;
#else
  u32 words[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < 16; i++)
    if (at + i < k) words[i / 4] |= (u32)(u8)row[at + i] << (i % 4 * 8);
  return make_uint4(words[0], words[1], words[2], words[3]);
#endif
}

typedef uint4 Weights[UNROLL][2];

struct Sums {
  int of[2][TILE_M * SUM_STRIDE];
  Barrier full[2], empty[2];
};

// The product's tiles, counted along m first, and the steps in which a block goes along k.
struct Work {
  u32 m_tiles, tiles, steps;

  INLINE explicit Work(const Arguments& args) {
    const u32 step = WARPS * UNROLL * CHUNK;
    m_tiles = (u32)((args.m + TILE_M - 1) / TILE_M);
    tiles = (u32)((args.n + TILE_N - 1) / TILE_N) * m_tiles;
    steps = max((u32)((args.k + step - 1) / step), 1u);
  }
};

// A position in a block's work.
struct Cursor {
  u32 tile, step;
  i64 first_m, first_n;

  INLINE explicit Cursor(const Work& work) : tile(blockIdx.x), step(0) { enter(work); }

  INLINE void enter(const Work& work) {
    first_m = (i64)(tile % work.m_tiles) * TILE_M;
    first_n = (i64)(tile / work.m_tiles) * TILE_N;
  }

  INLINE void next_tile(const Work& work) {
    tile += gridDim.x;
    enter(work);
  }

  // True if a new tile begins.
  INLINE bool advance(const Work& work) {
    if (++step < work.steps) return false;
    step = 0;
    next_tile(work);
    return true;
  }

  // This lane's first code of the step.
  INLINE i64 k() const {
    u32 warp = threadIdx.x / 32 - THREADS / 32;
    return ((i64)step * WARPS + warp) * (UNROLL * CHUNK) + threadIdx.x % 4 * 16;
  }
};

// Rows beyond the end are read as the last one, and their sums dropped.
INLINE void load_weights(Weights& weights, const Arguments& args, const Work& work, const Cursor& cursor) {
  if (cursor.tile >= work.tiles) return;
  i64 k = cursor.k(), row = cursor.first_n + threadIdx.x % 32 / 4;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const i8* codes = args.b + min(row + half * 8, args.n - 1) * args.k;
#pragma unroll
    for (int u = 0; u < UNROLL; u++) weights[u][half] = load_codes<true>(codes, k + u * CHUNK, args.k);
  }
}

INLINE void multiply_step(int (&acc)[M_TILES][4], const Weights& weights, const Arguments& args,
                          const Cursor& cursor) {
  i64 k = cursor.k(), row = cursor.first_m + threadIdx.x % 32 / 4;
#pragma unroll
  for (int m = 0; m < M_TILES; m++) {
    const i8* codes = args.a + min(row + m * 8, args.m - 1) * args.stride_a;
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      uint4 x = load_codes<false>(codes, k + u * CHUNK, args.k), low = weights[u][0], high = weights[u][1];
      multiply(acc[m], low.x, high.x, low.y, high.y, x.x, x.y);
      multiply(acc[m], low.z, high.z, low.w, high.w, x.z, x.w);
    }
  }
}

// Adds to the sums of a block's tile number `count`, and begins anew.
INLINE void hand_over(int (&acc)[M_TILES][4], Sums& sums, u32 count) {
  u32 slot = count % 2, lane = threadIdx.x % 32;
  if (count >= 2) sums.empty[slot].wait(count / 2 - 1);
#pragma unroll
  for (int m = 0; m < M_TILES; m++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      u32 row = m * 8 + lane % 4 * 2 + i % 2, column = i / 2 * 8 + lane / 4;
      atomicAdd(sums.of[slot] + row * SUM_STRIDE + column, acc[m][i]);
      acc[m][i] = 0;
    }
  __syncwarp();
  sums.full[slot].arrive_if(lane == 0);
}

INLINE void multiply_tiles(const Arguments& args, const Work& work, Sums& sums) {
  Weights weights[DEPTH];
  Cursor now(work), ahead(work);
#pragma unroll
  for (int d = 0; d < DEPTH; d++) {
    load_weights(weights[d], args, work, ahead);
    ahead.advance(work);
  }
  await_previous();
  int acc[M_TILES][4] = {};
  u32 count = 0;
  while (now.tile < work.tiles) {
#pragma unroll
    for (int d = 0; d < DEPTH; d++) {
      if (now.tile >= work.tiles) break;
      multiply_step(acc, weights[d], args, now);
      load_weights(weights[d], args, work, ahead);
      ahead.advance(work);
      if (now.advance(work)) hand_over(acc, sums, count++);
    }
  }
}

INLINE void finish_tiles(const Arguments& args, const Work& work, Sums& sums) {
  Team team{threadIdx.x, THREADS, 1};
  __shared__ __align__(16) Factors factors;
  Columns columns;
  await_previous();
  u32 count = 0;
  for (Cursor now(work); now.tile < work.tiles; now.next_tile(work), count++) {
    u32 slot = count % 2;
    if (dtype_of(args) == SUMS32) {
      sums.full[slot].wait(count / 2);
      store_sums(args, now.first_m, now.first_n, sums.of[slot]);
    } else {
      columns.leave = now.tile + gridDim.x >= work.tiles;
      finish_tile(args, now.first_m, now.first_n, sums.of[slot], factors, [&](u32 start) {
        team.sync();
        stage_factors(args, factors, columns, now.first_m, now.first_n, start, team);
        sums.full[slot].wait(count / 2);
        team.sync();
      });
    }
    team.sync();
    for (u32 i = threadIdx.x; i < TILE_M * SUM_STRIDE; i += THREADS) sums.of[slot][i] = 0;
    team.sync();
    sums.empty[slot].arrive_if(threadIdx.x == 0);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS + MULTIPLIERS, BLOCKS_A_SM) int8_gemm(Arguments args) {
  __shared__ __align__(16) Sums sums;
  for (u32 i = threadIdx.x; i < TILE_M * SUM_STRIDE; i += THREADS + MULTIPLIERS) sums.of[0][i] = sums.of[1][i] = 0;
  if (threadIdx.x < 2) {
    sums.full[threadIdx.x].init(WARPS);
    sums.empty[threadIdx.x].init(1);
  }
  __syncthreads();
  Work work(args);
  if (threadIdx.x < THREADS)
    finish_tiles(args, work, sums);
  else
    multiply_tiles(args, work, sums);
}
