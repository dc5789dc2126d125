// dequantize_blockwise: code[A] * absmax, rounded once (math: ops/dequantize_blockwise.py).
//
// Lane l of a warp turns, for each of UNROLL vectors v, the 8 codes from tile * TILE + v * 256 +
// l * 8 on into elements. The codebook, a tensor, lies in shared memory COPIES times: with 32, one
// for each bank, no look-up waits for another.
#include "output.cuh"

#define UNROLL 8
#define TILE (UNROLL * WARP_VECTOR)

extern "C" __global__ void __launch_bounds__(1024)
dequantize_blockwise(const u8* __restrict__ codes, const float* __restrict__ absmax,
                     const float* __restrict__ codebook, Element* __restrict__ out, i64 n,
                     int block_shift, int aligned) {
  __shared__ float table[256 * COPIES];
  for (u32 i = threadIdx.x; i < 256 * COPIES; i += blockDim.x) table[i] = codebook[i / COPIES];
  __syncthreads();

  u32 lane = threadIdx.x % 32;
  const float* copy = table + lane % COPIES;
  i64 tiles = (n + TILE - 1) / TILE;
  i64 warps = (i64)gridDim.x * (blockDim.x / 32);
  for (i64 tile = (i64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; tile < tiles; tile += warps) {
    i64 base = tile * TILE;
    bool whole = aligned && base + TILE <= n;
    uint2 words[UNROLL];
    float scales[UNROLL];
#pragma unroll
    for (int v = 0; v < UNROLL; v++) {
      i64 first = base + v * WARP_VECTOR + lane * 8;
      if (whole) {
        words[v] = __ldcs(reinterpret_cast<const uint2*>(codes + first));
      } else {
        words[v] = make_uint2(0, 0);
#pragma unroll 1
        for (int i = 0; i < 4; i++) {
          if (first + i < n) words[v].x |= (u32)codes[first + i] << 8 * i;
          if (first + 4 + i < n) words[v].y |= (u32)codes[first + 4 + i] << 8 * i;
        }
      }
      scales[v] = first < n ? absmax[first >> block_shift] : 0.0f;
    }
#pragma unroll
    for (int v = 0; v < UNROLL; v++) {
      float values[8];
#pragma unroll
      for (int i = 0; i < 8; i++) {
        u32 code = ((i < 4 ? words[v].x : words[v].y) >> i % 4 * 8) & 255u;
        values[i] = mul_rn(copy[code * COPIES], scales[v]);
      }
      store8(out, base + v * WARP_VECTOR + lane * 8, n, whole, values);
    }
  }
}
