// int8 products on Hopper (sm_90a): wgmma, both operands from shared memory, brought by TMA.
//
// A thread block owns TILE_M rows of a by TILE_N rows of b. Of one warpgroup, one thread keeps up to
// STAGES steps of STEP_K codes under way and three warps fetch scales and outlier columns meanwhile; each
// of the others multiplies 64 rows of a and makes the result in its registers (math: int8_factors.cuh).
#define TILE_M (64 * WARPGROUPS)
#define THREADS (128 * WARPGROUPS)
#define STEP_K 128
#define A_BYTES (TILE_M * STEP_K)
#define B_BYTES (TILE_N * STEP_K)
#define STAGE_BYTES (A_BYTES + B_BYTES)
#define SUMS (TILE_N / 2)
// Steps whose weights are fetched first. With more, the first activations would wait behind them.
#define EARLY 2
// Of an element of the result, which is RESULT.
#define OUT_BYTES (RESULT == FLOAT16 || RESULT == BFLOAT16 ? 2 : 4)
// Of a tile's rows in shared memory, such that they begin in different banks.
#define ROW_BYTES (OUT_BYTES * (TILE_N + 8))
// 16 bytes each, of a tile's row.
#define OUT_PIECES (OUT_BYTES * TILE_N / 16)
// Registers of a thread, out of an SM's 65536: at the start equally many for all, in eights.
#define START_REGISTERS (65536 / BLOCKS_A_SM / (THREADS + 128) / 8 * 8)
#define PRODUCER_REGISTERS 64
#define MOST_REGISTERS ((START_REGISTERS * (THREADS + 128) - PRODUCER_REGISTERS * 128) / THREADS / 8 * 8)
#define CONSUMER_REGISTERS (MOST_REGISTERS > 240 ? 240 : MOST_REGISTERS)

#include "overlap.cuh"
#include "tensor_map.cuh"

#include "int8_factors.cuh"

// After Arguments, so that the tensor maps lie at a multiple of 64.
#define PADDING 40
struct Padding {
  char unused[PADDING];
};

#define TEN(tens)                                                                                        \
  "%" #tens "0, %" #tens "1, %" #tens "2, %" #tens "3, %" #tens "4, %" #tens "5, %" #tens "6, %" #tens "7, " \
  "%" #tens "8, %" #tens "9"
#define OUT4(i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])
#define OUT16(i) OUT4(i), OUT4(i + 4), OUT4(i + 8), OUT4(i + 12)
#define OUT64(i) OUT16(i), OUT16(i + 16), OUT16(i + 32), OUT16(i + 48)
#define WGMMA(n, sums, a_at, b_at, d_at)                                                \
  "{ .reg .pred p; setp.ne.b32 p, %" d_at ", 0; wgmma.mma_async.sync.aligned.m64n" n "k32.s32.s8.s8 {" sums \
  "}, %" a_at ", %" b_at ", p; }"

// d = a * b, or d += a * b if accumulate: 64 rows of a by TILE_N of b, 32 codes along k. Warp w of
// the four holds rows 16 w on; lane 4 g + t of rows g and g + 8 columns 8 j + 2 t and the next, in d[4 j] on.
INLINE void wgmma(int (&d)[SUMS], u64 a, u64 b, int accumulate) {
#if TILE_N == 32
  asm volatile(WGMMA("32", TEN() ", %10, %11, %12, %13, %14, %15", "16", "17", "18")
               : OUT16(0)
               : "l"(a), "l"(b), "r"(accumulate));
#elif TILE_N == 64
  asm volatile(WGMMA("64", TEN() ", " TEN(1) ", " TEN(2) ", %30, %31", "32", "33", "34")
               : OUT16(0), OUT16(16)
               : "l"(a), "l"(b), "r"(accumulate));
#elif TILE_N == 128
  asm volatile(WGMMA("128", TEN() ", " TEN(1) ", " TEN(2) ", " TEN(3) ", " TEN(4) ", " TEN(5) ", %60, %61, %62, %63",
                     "64", "65", "66")
               : OUT64(0)
               : "l"(a), "l"(b), "r"(accumulate));
#elif TILE_N == 112
  asm volatile(WGMMA("112", TEN() ", " TEN(1) ", " TEN(2) ", " TEN(3) ", " TEN(4) ", %50, %51, %52, %53, %54, %55", "56",
                     "57", "58")
               : OUT16(0), OUT16(16), OUT16(32), OUT4(48), OUT4(52)
               : "l"(a), "l"(b), "r"(accumulate));
#endif
}

// Those who bring factors (int8_factors.cuh).
#define TEAM 96

struct Pipeline {
  Barrier full[STAGES], empty[STAGES];
  // Of factors: those of OUTLIERS columns are there; and are done with.
  Barrier staged, used;
};

// The thread that fetches both operands. Of the first EARLY steps, weights before all else: the kernel that
// quantizes the activations may still be running, if the launch overlaps with it.
struct Producer {
  const TensorMap& a_map;
  const TensorMap& b_map;
  Pipeline& pipeline;
  char* stages;
  int first_m, first_n, steps;
  // No other block reads these weights.
  bool read_once;

  INLINE void fetch_weights(u32 slot, int step) const {
    Barrier& full = pipeline.full[slot];
    char* target = stages + slot * STAGE_BYTES + A_BYTES;
    expect_bytes(full, STAGE_BYTES);
    if (read_once)
      fetch_box_once(b_map, target, full, step * STEP_K, first_n);
    else
      fetch_box(b_map, target, full, step * STEP_K, first_n);
  }

  INLINE void fetch_activations(u32 slot, int step) const {
    fetch_box(a_map, stages + slot * STAGE_BYTES, pipeline.full[slot], step * STEP_K, first_m);
  }

  INLINE void start() const {
#pragma unroll
    for (int i = 0; i < STAGES; i++) {
      pipeline.full[i].init(1);
      pipeline.empty[i].init(THREADS / 32);
    }
    // Every thread arrives for itself, an order that racecheck can follow.
    pipeline.staged.init(TEAM), pipeline.used.init(THREADS);
    publish_to_copies();
#pragma unroll 1
    for (int step = 0; step < min(steps, EARLY); step++) fetch_weights(step, step);
    fetch_map(a_map);
  }

  INLINE void run() const {
    await_previous();
#pragma unroll 1
    for (int step = 0; step < min(steps, STAGES); step++) {
      if (step >= EARLY) fetch_weights(step, step);
      fetch_activations(step, step);
    }
    u32 slot = 0, phase = 0;
#pragma unroll 1
    for (int step = STAGES; step < steps; step++) {
      pipeline.empty[slot].wait(phase);
      fetch_weights(slot, step);
      fetch_activations(slot, step);
      if (++slot == STAGES) slot = 0, phase++;
    }
  }
};

INLINE void consume(int (&d)[SUMS], Pipeline& pipeline, char* stages, int steps) {
  u32 group = __shfl_sync(0xFFFFFFFFu, threadIdx.x / 128, 0), slot = 0, phase = 0;
#pragma unroll 1
  for (int step = 0; step < steps; step++) {
    pipeline.full[slot].wait(phase);
    u64 a = descriptor(stages + slot * STAGE_BYTES + group * 64 * STEP_K);
    u64 b = descriptor(stages + slot * STAGE_BYTES + A_BYTES);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int j = 0; j < STEP_K / 32; j++) wgmma(d, a + 2 * j, b + 2 * j, step > 0 || j > 0);
    asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 1;" ::: "memory");
    // Now the step before is done with.
    pipeline.empty[slot == 0 ? STAGES - 1 : slot - 1].arrive_if(step > 0 && threadIdx.x % 32 == 0);
    if (++slot == STAGES) slot = 0, phase++;
  }
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
  for (int i = 0; i < SUMS; i++) asm volatile("" : "+r"(d[i])::"memory");
}

// In place of the sums, as bits, the results but for the bias.
//
// stage(start): once it has returned, what stage_factors brings is in `factors`.
template <typename Stage>
INLINE void finish_sums(int (&d)[SUMS], const Factors& factors, Stage stage) {
  u32 lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4, column = lane % 4 * 2;
  stage(0);
  float scale_a[2] = {factors.scale_a[row], factors.scale_a[row + 8]};
#pragma unroll
  for (int i = 0; i < SUMS; i++)
    d[i] = bits_of(int8_scaled(d[i], scale_a[i / 2 % 2], factors.scale_b[i / 4 * 8 + column + i % 2]));
  u32 count = factors.count;
  // Or addresses of all columns' factors would be kept from here on, and registers are short then.
  if (RESULT == FLOAT32) asm volatile("" : "+r"(column));
#pragma unroll 1
  for (u32 start = 0; start < count; start += OUTLIERS) {
    if (start > 0) stage(start);
    u32 here = min(count - start, OUTLIERS);
#pragma unroll
    for (int j = 0; j < TILE_N / 8; j++) {
      float extra[4] = {};
#pragma unroll 2
      for (u32 c = 0; c < here; c++) {
        float low = factors.a[c][row], high = factors.a[c][row + 8];
        float2 b = *reinterpret_cast<const float2*>(&factors.b[c][j * 8 + column]);
        extra[0] += low * b.x, extra[1] += low * b.y, extra[2] += high * b.x, extra[3] += high * b.y;
      }
#pragma unroll
      for (int i = 0; i < 4; i++)
        d[j * 4 + i] =
            bits_of(int8_with_outliers(float_of(d[j * 4 + i]), extra[i], factors.scale_b[j * 8 + column + i % 2]));
    }
  }
}

// The warp's 16 rows of the result, through its part of shared memory, so that whole rows are written.
INLINE void store_rows(const Arguments& args, const int (&d)[SUMS], const Factors& factors, char* tile, int first_m,
                       int first_n) {
  u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  char* rows = tile + warp * 16 * ROW_BYTES;
  char* place = rows + lane / 4 * ROW_BYTES + lane % 4 * 2 * OUT_BYTES;
#pragma unroll
  for (int i = 0; i < SUMS; i += 2) {
    char* target = place + i / 2 % 2 * 8 * ROW_BYTES + i / 4 * 8 * OUT_BYTES;
    if (RESULT == SUMS32) {
      *reinterpret_cast<int2*>(target) = make_int2(d[i], d[i + 1]);
      continue;
    }
    float2 bias = *reinterpret_cast<const float2*>(factors.bias + i / 4 * 8 + lane % 4 * 2);
    float low = add_rn(float_of(d[i]), bias.x), high = add_rn(float_of(d[i + 1]), bias.y);
    if (OUT_BYTES == 2)
      *reinterpret_cast<u32*>(target) = pack_as(low, high, RESULT);
    else
      *reinterpret_cast<float2*>(target) = make_float2(low, high);
  }
  __syncwarp();
  char* out = static_cast<char*>(args.out);
  bool aligned = args.n * OUT_BYTES % 16 == 0;
#pragma unroll 8
  for (u32 i = lane; i < 16 * OUT_PIECES; i += 32) {
    u32 row = i / OUT_PIECES, byte = i % OUT_PIECES * 16;
    i64 m = first_m + (int)(warp * 16 + row), n = first_n + (int)(byte / OUT_BYTES);
    if (m >= args.m) break;
    const char* source = rows + row * ROW_BYTES + byte;
    char* target = out + (m * args.n + n) * OUT_BYTES;
    if (aligned) {
      if (n < args.n) *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(source);
    } else {
#pragma unroll 1
      for (u32 e = 0; e < 16 / OUT_BYTES && n + e < args.n; e++) {
        if (OUT_BYTES == 2)
          reinterpret_cast<u16*>(target)[e] = reinterpret_cast<const u16*>(source)[e];
        else
          reinterpret_cast<u32*>(target)[e] = reinterpret_cast<const u32*>(source)[e];
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS + 128, BLOCKS_A_SM)
int8_wgmma(const __grid_constant__ Arguments args, const __grid_constant__ Padding padding,
           const __grid_constant__ TensorMap a_map, const __grid_constant__ TensorMap b_map) {
  __shared__ Pipeline pipeline;
  __shared__ __align__(16) Factors factors;
  extern __shared__ uint4 dynamic[];
  char* stages = reinterpret_cast<char*>(dynamic);
  stages += (1024 - shared_address(stages) % 1024) % 1024;
  u32 m_tiles = (u32)((args.m + TILE_M - 1) / TILE_M);
  int first_m = (int)(blockIdx.x % m_tiles * TILE_M), first_n = (int)(blockIdx.x / m_tiles * TILE_N);
  int steps = (int)((args.k + STEP_K - 1) / STEP_K);
  Producer producer{a_map, b_map, pipeline, stages, first_m, first_n, steps, m_tiles == 1};
  if (threadIdx.x == THREADS) producer.start();
  __syncthreads();
  // The same in all lanes, which the compiler must know, or it waits for each product of wgmma.
  u32 warp = __shfl_sync(0xFFFFFFFFu, threadIdx.x / 32, 0);
  if (warp >= THREADS / 32) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(PRODUCER_REGISTERS));
    if (threadIdx.x == THREADS) producer.run();
    if (RESULT != SUMS32 && warp > THREADS / 32) {
      await_previous();
      Team team{threadIdx.x - THREADS - 32, TEAM, 2};
      Columns columns;
      u32 start = 0;
      do {
        if (start > 0) pipeline.used.wait(start / OUTLIERS - 1);
        stage_factors(args, factors, columns, first_m, first_n, start, team);
        pipeline.staged.arrive();
        start += OUTLIERS;
      } while (start < columns.count);
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CONSUMER_REGISTERS));
    int d[SUMS];
    consume(d, pipeline, stages, steps);
    if (RESULT != SUMS32)
      finish_sums(d, factors, [&](u32 start) {
        if (start > 0) pipeline.used.arrive();
        pipeline.staged.wait(start / OUTLIERS);
      });
    // The stages are read no more.
    sync_threads(1, THREADS);
    store_rows(args, d, factors, stages, first_m, first_n);
  }
}
