// From int32 sums to the result: both scales, the outlier columns, the bias, rounded once.
//
//   out[m, n] = sum[m, n] * (scale_a[m] * scale_b[n]) / 127^2 + extra[m, n] * scale_b[n] / 127 + bias[n]
//   extra[m, n] = sum over outlier columns c of (a[m, c] - code_a[m, c] * scale_a[m] / 127) * code_b[n, c]
//
// Codes of outlier columns need not be zero that way: what they add to the sums is taken off again.
#pragma once
#include "int8_math.cuh"

typedef signed char i8;

// Of result, bias and activations; or the result is the int32 sums themselves.
enum Dtype : u32 { FLOAT32, FLOAT16, BFLOAT16, SUMS32 };

// sums: for int8_dequant.cuh only. Outlier columns are those marked in mask, (k + 31) / 32 words, which
// the last of gridDim.x blocks to read it clears again (arrivals is zero before and after); or, if mask is
// null, the `count` ones in columns. codes_are_zero: in outlier columns.
struct Arguments {
  const i8* a;
  const i8* b;
  const int* sums;
  const float* scale_a;
  const float* scale_b;
  const void* bias;
  void* out;
  const void* activations;
  u32* mask;
  u32* arrivals;
  const u32* columns;
  i64 m, n, k, stride_a;
  u32 count, codes_are_zero, dtype;
};

// RESULT: for a kernel that is compiled for one of them.
INLINE u32 dtype_of(const Arguments& args) {
#ifdef RESULT
  return RESULT;
#else
  return args.dtype;
#endif
}

// Without branches, so that several loads are on their way at once.
INLINE float element_of(const void* elements, i64 i, u32 dtype) {
  bool whole = dtype == FLOAT32;
  const u16* place = static_cast<const u16*>(elements) + (whole ? 2 * i + 1 : i);
  u32 high = __ldg(place), low = __ldg(place - whole);
  float half = half_to_float(high), other = float_of(high << 16 | (whole ? low : 0u));
  return dtype == FLOAT16 ? half : other;
}

INLINE u32 pack_as(float low, float high, u32 dtype) {
  return dtype == FLOAT16 ? pack_half(low, high) : pack_bf16(low, high);
}

#define OUTLIERS 16
#define BATCH 4

// The threads that do something together, and the barrier that they alone use.
struct Team {
  u32 thread, threads, barrier;

  INLINE void sync() const { asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory"); }
};

// What turns a tile's sums into its part of the result, in shared memory: scales, bias (zero if there is
// none), and the outlier columns' values, OUTLIERS of them at a time; and how many there are in all.
struct Factors {
  float scale_a[TILE_M], scale_b[TILE_N], bias[TILE_N];
  float a[OUTLIERS][TILE_M];
  float b[OUTLIERS][TILE_N];
  u32 columns[OUTLIERS];
  u32 of_warps[THREADS / 32];
  u32 count;
};

// What each thread of a team knows of the columns in Factors: the number of the first, how many there
// are in all, and of which rows the activations are there. leave: this tile is the last for which the
// block reads the mask.
struct Columns {
  u32 start, count;
  i64 first_m;
  bool leave;

  INLINE Columns() : start(~0u), count(0), first_m(-1), leave(true) {}
};

// The marked columns number start to start + OUTLIERS - 1 into shared.columns; returns how many there
// are in all.
INLINE u32 find_columns(const Arguments& args, Factors& shared, u32 start, const Team& team) {
  u32 total = 0, warp = team.thread / 32;
  i64 words = (args.k + 31) / 32;
#pragma unroll 1
  for (i64 first = 0; first < words; first += team.threads) {
    i64 at = first + team.thread;
    u32 word = at < words ? __ldcg(args.mask + at) : 0u, index = __popc(word);
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      u32 lower = __shfl_up_sync(0xFFFFFFFFu, index, step);
      if (team.thread % 32 >= step) index += lower;
    }
    if (team.thread % 32 == 31) shared.of_warps[warp] = index;
    team.sync();
    index += total - __popc(word);
#pragma unroll 1
    for (u32 w = 0; w < team.threads / 32; w++) {
      if (w < warp) index += shared.of_warps[w];
      total += shared.of_warps[w];
    }
#pragma unroll 1
    for (; word; word &= word - 1, index++)
      if (index - start < OUTLIERS) shared.columns[index - start] = (u32)at * 32 + __ffs(word) - 1;
    team.sync();
  }
  return total;
}

// By the first warp of each block's team that has read the mask for the last time.
INLINE void leave_mask(const Arguments& args, u32 lane) {
  u32 before = 0;
  if (lane == 0) before = atomicInc(args.arrivals, gridDim.x - 1);
  if (__shfl_sync(0xFFFFFFFFu, before, 0) != gridDim.x - 1) return;
#pragma unroll 1
  for (i64 i = lane; i < (args.k + 31) / 32; i += 32) args.mask[i] = 0;
}

// Outlier columns' elements of ROWS_OF_TILE rows to shared memory, `load` telling them by row and number of
// the column: BATCH a thread at a time, so that their latencies overlap.
template <int ROWS_OF_TILE, typename Load>
INLINE void stage_rows(float (&target)[OUTLIERS][ROWS_OF_TILE], u32 columns, const Team& team, Load load) {
#pragma unroll 1
  for (u32 first = team.thread; first < columns * ROWS_OF_TILE; first += BATCH * team.threads) {
    float values[BATCH];
#pragma unroll
    for (u32 i = 0; i < BATCH; i++) {
      u32 at = min(first + i * team.threads, columns * ROWS_OF_TILE - 1);
      values[i] = load(at % ROWS_OF_TILE, at / ROWS_OF_TILE);
    }
#pragma unroll
    for (u32 i = 0; i < BATCH; i++) {
      u32 at = first + i * team.threads;
      if (at < columns * ROWS_OF_TILE) target[at / ROWS_OF_TILE][at % ROWS_OF_TILE] = values[i];
    }
  }
}

INLINE void stage_scales(const Arguments& args, Factors& shared, i64 first_m, i64 first_n, const Team& team) {
#pragma unroll 1
  for (u32 i = team.thread; i < TILE_M; i += team.threads) shared.scale_a[i] = args.scale_a[min(first_m + i, args.m - 1)];
#pragma unroll 1
  for (u32 i = team.thread; i < TILE_N; i += team.threads) {
    i64 n = min(first_n + i, args.n - 1);
    shared.scale_b[i] = args.scale_b[n];
    shared.bias[i] = args.bias ? element_of(args.bias, n, dtype_of(args)) : 0.0f;
  }
}

// Brings the outlier columns from number start on to shared memory, and scales and bias before the first,
// for whoever synchronises with the team then. Rows beyond the end are read as the last one.
INLINE void stage_factors(const Arguments& args, Factors& shared, Columns& columns, i64 first_m, i64 first_n,
                          u32 start, const Team& team) {
  if (start == 0) stage_scales(args, shared, first_m, first_n, team);
  bool same_rows = columns.start == start && columns.first_m == first_m;
  columns.first_m = first_m;
  if (columns.start != start) {
    columns.start = start;
    if (args.mask) {
      columns.count = find_columns(args, shared, start, team);
    } else {
      columns.count = args.count;
      if (team.thread < OUTLIERS && start + team.thread < args.count)
        shared.columns[team.thread] = args.columns[start + team.thread];
      team.sync();
    }
  }
  u32 count = columns.count;
  if (args.mask && columns.leave && team.thread < 32 && start + OUTLIERS >= count) leave_mask(args, team.thread);
  if (team.thread == 0) shared.count = count;
  u32 here = start < count ? min(count - start, OUTLIERS) : 0u;
  stage_rows(shared.b, here, team, [&](u32 row, u32 c) {
    return (float)__ldg(args.b + min(first_n + row, args.n - 1) * args.k + shared.columns[c]);
  });
  if (same_rows) return;
  stage_rows(shared.a, here, team, [&](u32 row, u32 c) {
    i64 m = min(first_m + row, args.m - 1);
    u32 column = shared.columns[c];
    float value = element_of(args.activations, m * args.k + column, dtype_of(args));
    return args.codes_are_zero ? value : int8_residual(value, args.a[m * args.stride_a + column], args.scale_a[m]);
  });
}
