// Columns to int8 codes and one float32 scale a column (math: ops/int8_double_quant.py).
//
// A warp takes 256 neighbouring columns, eight a lane, of every row that comes to it. Two kernels: the
// largest magnitudes, and (CODES) the codes.
#include "int8_vector.cuh"

#define WARPS 8
#define WARP_COLUMNS 256

// scales: the bits of the columns' largest magnitudes, zero before the first kernel. aligned: rows begin
// at multiples of 16 bytes. threshold: NaN if there is none.
struct Arguments {
  const Element* rows;
  signed char* codes;
  u32* scales;
  i64 m, k;
  float threshold;
  int aligned;
};

// The thread's first column and row, and the rows from one of its own to the next.
struct Place {
  i64 column, row, step;

  INLINE explicit Place() {
    column = (i64)blockIdx.x * WARP_COLUMNS + threadIdx.x % 32 * 8;
    row = (i64)blockIdx.y * WARPS + threadIdx.x / 32;
    step = (i64)gridDim.y * WARPS;
  }
};

#if !CODES
extern "C" __global__ void __launch_bounds__(32 * WARPS) int8_column_absmax(Arguments args) {
  __shared__ u32 largest[WARP_COLUMNS];
  for (u32 i = threadIdx.x; i < WARP_COLUMNS; i += 32 * WARPS) largest[i] = 0;
  __syncthreads();
  Place place;
  u32 found[8] = {};
#pragma unroll 4
  for (i64 m = place.row; m < args.m; m += place.step) {
    Vector v = load_vector(args.rows + m * args.k, place.column, args.k, args.aligned);
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (!(fabsf(v[i]) >= args.threshold)) found[i] = max(found[i], bits_of(v[i]) & 0x7FFFFFFFu);
  }
#pragma unroll
  for (int i = 0; i < 8; i++) atomicMax(largest + threadIdx.x % 32 * 8 + i, found[i]);
  __syncthreads();
  i64 column = (i64)blockIdx.x * WARP_COLUMNS + threadIdx.x;
  if (column < args.k) atomicMax(args.scales + column, largest[threadIdx.x]);
}
#else
extern "C" __global__ void __launch_bounds__(32 * WARPS) int8_column_codes(Arguments args) {
  Place place;
  float inverse[8];
#pragma unroll
  for (int i = 0; i < 8; i++)
    inverse[i] = place.column + i < args.k ? int8_inverse(float_of(args.scales[place.column + i])) : 0.0f;
  if (place.column >= args.k) return;
#pragma unroll 4
  for (i64 m = place.row; m < args.m; m += place.step) {
    Vector v = load_vector(args.rows + m * args.k, place.column, args.k, args.aligned);
    u32 words[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (!(fabsf(v[i]) >= args.threshold)) words[i / 4] |= int8_code(v[i], inverse[i]) << (i % 4 * 8);
    store_codes(args.codes + m * args.k + place.column, words[0], words[1], args.k - place.column, args.k % 8 == 0);
  }
}
#endif
