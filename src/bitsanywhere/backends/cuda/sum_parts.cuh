// The sum of float32 numbers in PARTS parts, one for each block of threads, in a fixed order.
//
// Threads add in float32 (their sums are short, and their rounding errors many and independent),
// blocks in double.
#include "convert.cuh"

#define THREADS 1024

INLINE double warp_sum(double x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, step);
  return x;
}

extern "C" __global__ void __launch_bounds__(THREADS)
sum_parts(const float* __restrict__ x, double* __restrict__ parts, i64 n) {
  __shared__ double warps[32];
  float mine = 0.0f;
#pragma unroll 4
  for (i64 i = (i64)blockIdx.x * THREADS + threadIdx.x; i < n; i += PARTS * THREADS) mine += x[i];
  double sum = warp_sum(mine);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  sum = warp_sum(warps[threadIdx.x]);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}
