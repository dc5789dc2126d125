// The sum of squares of a tensor's update, for rules that limit its norm (math: optimizer_rules.cuh).
// Nothing but the sum is written, which is the same in every run: each thread block sums its part,
// and the last one to arrive sums these.
#include "optimizer_tensors.cuh"

// The sum over a thread block, in its first thread.
INLINE double block_sum(double sum) {
  __shared__ double sums[THREADS / 32];
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(0xFFFFFFFFu, sum, step);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  for (u32 i = 1; i < THREADS / 32; i++) sum += sums[i];
  return sum;
}

extern "C" __global__ void __launch_bounds__(THREADS)
optimizer_norm(const __grid_constant__ Tensors tensors, const __grid_constant__ Settings h, int rule,
               double* partial, u32* arrivals, float* unorm) {
  const Tensor& t = tensors.list[0];
  const u32 *state1 = static_cast<u32*>(t.state1), *state2 = static_cast<u32*>(t.state2);
  double sum = 0.0;
  for (i64 i = (i64)blockIdx.x * THREADS + threadIdx.x; i < t.count; i += (i64)gridDim.x * THREADS) {
    State state = {float_of(state1[i]), rule == ADEMAMIX ? float_of(state1[t.count + i]) : 0.0f,
                   state2 ? float_of(state2[i]) : 0.0f};
    float g = to_float(t.g[i]), u = step(rule, g, to_float(t.p[i]), state, h);
    if (counts(g, h)) sum += (double)u * u;
  }
  sum = block_sum(sum);

  __shared__ bool last;
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = sum;
    __threadfence();
    last = atomicAdd(arrivals, 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  sum = 0.0;
  for (u32 i = threadIdx.x; i < gridDim.x; i += THREADS) sum += *(volatile double*)(partial + i);
  __syncthreads();
  sum = block_sum(sum);
  if (threadIdx.x == 0) *unorm = (float)sum, *arrivals = 0;
}
