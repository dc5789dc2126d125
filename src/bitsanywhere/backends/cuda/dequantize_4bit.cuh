// dequantize_4bit: values[code] * absmax, rounded once (math: ops/dequantize_4bit.py).
//
// Lane l of a warp turns, for each of UNROLL vectors v, one 32-bit word of codes into the 8
// elements from tile * TILE + v * 256 + l * 8 on. The codebook lies in shared memory 32 times, one
// for each bank.
#include "output.cuh"

#define UNROLL 2
#define TILE (UNROLL * WARP_VECTOR)

extern "C" __global__ void __launch_bounds__(256)
dequantize_4bit(const u8* __restrict__ packed, const float* __restrict__ absmax,
                const float* __restrict__ codebook, Element* __restrict__ out, i64 n, int block_shift,
                int aligned) {
  __shared__ float table[16 * 32];
  for (u32 i = threadIdx.x; i < 16 * 32; i += blockDim.x) table[i] = codebook[i / 32];
  __syncthreads();

  u32 lane = threadIdx.x % 32;
  const float* copy = table + lane;
  i64 tiles = (n + TILE - 1) / TILE;
  i64 warps = (i64)gridDim.x * (blockDim.x / 32);
  for (i64 tile = (i64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; tile < tiles; tile += warps) {
    i64 base = tile * TILE;
    bool whole = aligned && base + TILE <= n;
    u32 words[UNROLL];
    float scales[UNROLL];
#pragma unroll
    for (int v = 0; v < UNROLL; v++) {
      i64 first = base + v * WARP_VECTOR + lane * 8;
      if (whole) {
        words[v] = __ldcs(reinterpret_cast<const u32*>(packed + first / 2));
      } else {
        words[v] = 0;
        for (int i = 0; i < 4; i++)
          if (first + 2 * i < n) words[v] |= (u32)packed[first / 2 + i] << 8 * i;
      }
      scales[v] = first < n ? absmax[first >> block_shift] : 0.0f;
    }
#pragma unroll
    for (int v = 0; v < UNROLL; v++) {
      float values8[8];
#pragma unroll
      for (int i = 0; i < 8; i++)
        values8[i] = mul_rn(copy[(words[v] >> (i * 4 ^ 4) & 15u) * 32], scales[v]);
      store8(out, base + v * WARP_VECTOR + lane * 8, n, whole, values8);
    }
  }
}
