// The result of a tile's int32 sums in shared memory.
#pragma once
#include "int8_factors.cuh"

#define COLUMNS 4
// A thread's share of a tile: COLUMNS columns of every ROW_STEP-th row, GROUP rows at a time; more would take
// registers that the choice of a dtype needs.
#define ROW_THREADS (TILE_N / COLUMNS)
#define ROW_STEP (THREADS / ROW_THREADS)
#define ROWS ((TILE_M + ROW_STEP - 1) / ROW_STEP)
#define GROUP (ROWS < 2 ? ROWS : 2)

// Up to COLUMNS consecutive elements of a row of the result, from element number i on.
INLINE void store(const Arguments& args, i64 i, const float (&values)[COLUMNS], i64 count, bool whole) {
  if (dtype_of(args) == FLOAT32) {
    float* target = static_cast<float*>(args.out) + i;
    if (whole) {
      *reinterpret_cast<float4*>(target) = make_float4(values[0], values[1], values[2], values[3]);
    } else {
#pragma unroll
      for (int j = 0; j < COLUMNS; j++)
        if (j < count) target[j] = values[j];
    }
    return;
  }
  u16* target = static_cast<u16*>(args.out) + i;
  u32 low = pack_as(values[0], values[1], dtype_of(args)), high = pack_as(values[2], values[3], dtype_of(args));
  if (whole) {
    *reinterpret_cast<uint2*>(target) = make_uint2(low, high);
  } else {
#pragma unroll
    for (int j = 0; j < COLUMNS; j++)
      if (j < count) target[j] = (u16)((j < 2 ? low : high) >> j % 2 * 16);
  }
}

// The tile's part of the result, by threads 0 to THREADS - 1.
//
// stage(start): once it has returned, what stage_factors brings is in `shared`, and the sums are there.
// sums: in shared memory, rows SUM_STRIDE apart; overwritten where there are more than OUTLIERS columns.
template <typename Stage>
INLINE void finish_tile(const Arguments& args, i64 first_m, i64 first_n, int* sums, const Factors& shared,
                        Stage stage) {
  u32 tile_n = threadIdx.x % ROW_THREADS * COLUMNS, tile_m = threadIdx.x / ROW_THREADS;
  // Threads that are left over have nothing to do.
  i64 n = tile_m < ROW_STEP ? first_n + tile_n : args.n;
  bool whole = args.n % COLUMNS == 0;
  u32 start = 0, end, count;
  do {
    stage(start);
    count = shared.count, end = min(start + OUTLIERS, count);
    float4 of_b = *reinterpret_cast<const float4*>(shared.scale_b + tile_n);
    float4 added = *reinterpret_cast<const float4*>(shared.bias + tile_n);
    float scale_b[COLUMNS] = {of_b.x, of_b.y, of_b.z, of_b.w}, bias[COLUMNS] = {added.x, added.y, added.z, added.w};
#pragma unroll 1
    for (int r = 0; r < ROWS; r += GROUP) {
      float extra[GROUP][COLUMNS] = {};
#pragma unroll 1
      for (u32 c = 0; c < end - start; c++) {
        float4 b = *reinterpret_cast<const float4*>(&shared.b[c][tile_n]);
#pragma unroll
        for (int g = 0; g < GROUP; g++) {
          float a = shared.a[c][min(tile_m + (r + g) * ROW_STEP, TILE_M - 1)];
          extra[g][0] += a * b.x, extra[g][1] += a * b.y, extra[g][2] += a * b.z, extra[g][3] += a * b.w;
        }
      }
#pragma unroll
      for (int g = 0; g < GROUP; g++) {
        u32 row = tile_m + (r + g) * ROW_STEP;
        i64 m = first_m + row;
        if (row >= TILE_M || m >= args.m || n >= args.n) continue;
        int4* place = reinterpret_cast<int4*>(sums + row * SUM_STRIDE + tile_n);
        int4 found = *place;
        int sum[COLUMNS] = {found.x, found.y, found.z, found.w};
        float scale_a = shared.scale_a[row], values[COLUMNS];
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) {
          values[i] = start == 0 ? int8_scaled(sum[i], scale_a, scale_b[i]) : float_of(sum[i]);
          if (start < end) values[i] = int8_with_outliers(values[i], extra[g][i], scale_b[i]);
          if (end == count) values[i] = add_rn(values[i], bias[i]);
        }
        if (end == count)
          store(args, m * args.n + n, values, args.n - n, whole);
        else
          *place = make_int4(bits_of(values[0]), bits_of(values[1]), bits_of(values[2]), bits_of(values[3]));
      }
    }
    start = end;
  } while (end < count);
}

// As finish_tile, where the int32 sums are the result.
INLINE void store_sums(const Arguments& args, i64 first_m, i64 first_n, const int* sums) {
  int* out = static_cast<int*>(args.out);
  i64 n = first_n + threadIdx.x % ROW_THREADS * COLUMNS;
#pragma unroll 1
  for (u32 row = threadIdx.x / ROW_THREADS; row < TILE_M && first_m + row < args.m; row += ROW_STEP)
    for (int i = 0; i < COLUMNS; i++)
      if (n + i < args.n) out[(first_m + row) * args.n + n + i] = sums[row * SUM_STRIDE + n - first_n + i];
}
