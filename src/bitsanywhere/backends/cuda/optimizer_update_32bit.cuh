// optimizer_update_32bit: one step of many tensors with float32 states (math: optimizer_rules.cuh).
//
// A warp takes a block of 256 elements: lane l holds the four from l * 4 on of each half.
#include "optimizer_tensors.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, RULE == ADEMAMIX ? 2 : 3)
optimizer_update_32bit(const __grid_constant__ Tensors tensors, const __grid_constant__ Settings h,
                       const float* __restrict__ unorm, float allowed, u32 blocks) {
  float times = h.times;
  if (unorm != nullptr) {
    float norm = sqrtf(*unorm);
    if (norm > allowed) times *= allowed / norm;
  }
  u32 lane = threadIdx.x % 32, warps = gridDim.x * (THREADS / 32), at = 0;
  for (u32 block = blockIdx.x * (THREADS / 32) + threadIdx.x / 32; block < blocks; block += warps) {
    while (block >= tensors.list[at + 1].begin) at++;
    const Tensor& t = tensors.list[at];
    u32 own = block - t.begin;
    bool whole = own < t.whole;
    i64 n = t.count, base = (i64)own * BLOCKSIZE;
    u32 *state1 = static_cast<u32*>(t.state1), *state2 = static_cast<u32*>(t.state2);
    float g[2][4], p[2][4], first[2][4], slow[2][4], second[2][4];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      i64 from = base + half * 128 + lane * 4;
      load4(t.g, from, n, whole, g[half]);
      load4(t.p, from, n, whole, p[half]);
      load4(state1, from, n, whole, first[half]);
      if (RULE == ADEMAMIX) load4(state1 + n, from, n, whole, slow[half]);
      if (RULE == ADAM || RULE == ADEMAMIX) load4(state2, from, n, whole, second[half]);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      i64 from = base + half * 128 + lane * 4;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        State state = {first[half][i], slow[half][i], second[half][i]};
        bool kept = counts(g[half][i], h);
        float u = step(RULE, g[half][i], p[half][i], state, h);
        p[half][i] = kept ? shifted(p[half][i], u, times, h) : p[half][i];
        first[half][i] = kept ? state.first : first[half][i];
        slow[half][i] = kept ? state.slow : slow[half][i];
        second[half][i] = kept ? state.second : second[half][i];
      }
      store4(t.p, from, n, whole, p[half]);
      store4(state1, from, n, whole, first[half]);
      if (RULE == ADEMAMIX) store4(state1 + n, from, n, whole, slow[half]);
      if (RULE == ADAM || RULE == ADEMAMIX) store4(state2, from, n, whole, second[half]);
    }
  }
}
