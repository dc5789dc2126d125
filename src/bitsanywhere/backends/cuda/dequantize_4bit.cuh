// dequantize_4bit: values[code] * absmax, rounded once (math: ops/dequantize_4bit.py).
//
// A warp takes one tile. Its lane l turns, for each of UNROLL vectors v, one 32-bit word of codes into
// the 8 elements from tile * TILE + v * 256 + l * 8 on. The codebook lies in shared memory 32 times,
// one for each bank. NESTED: absmax is made of its own 8-bit codes, bit-equal with what
// dequantize_blockwise and an addition make of them.
#include "output.cuh"

#define UNROLL 2
#define TILE (UNROLL * WARP_VECTOR)

extern "C" __global__ void __launch_bounds__(256)
dequantize_4bit(const u8* __restrict__ packed, const float* __restrict__ absmax,
                const float* __restrict__ codebook, Element* __restrict__ out, i64 n, int block_shift,
                int aligned
#if NESTED
                , const u8* __restrict__ absmax_8bit, const float* __restrict__ absmax_code,
                const float* __restrict__ absmax_offset
#endif
) {
  u32 lane = threadIdx.x % 32;
  i64 base = ((i64)blockIdx.x * 8 + threadIdx.x / 32) * TILE;
  bool whole = aligned && base + TILE <= n;
  u32 words[UNROLL];
  float scales[UNROLL];
#if NESTED
  u32 scale_codes[UNROLL];
#endif
  // Memory answers while the tables are filled.
#pragma unroll
  for (int v = 0; v < UNROLL; v++) {
    i64 first = base + v * WARP_VECTOR + lane * 8;
    if (whole) {
      words[v] = __ldcs(reinterpret_cast<const u32*>(packed + first / 2));
    } else {
      words[v] = 0;
#pragma unroll 1
      for (int i = 0; i < 4; i++)
        if (first + 2 * i < n) words[v] |= (u32)packed[first / 2 + i] << 8 * i;
    }
    i64 block = first < n ? first >> block_shift : 0;
#if NESTED
    scale_codes[v] = absmax_8bit[block];
    scales[v] = absmax[block / 256];
#else
    scales[v] = absmax[block];
#endif
  }

  __shared__ float table[16 * 32];
  for (u32 i = threadIdx.x; i < 16 * 32; i += 256) table[i] = codebook[i / 32];
#if NESTED
  __shared__ float scale_table[256];
  scale_table[threadIdx.x] = absmax_code[threadIdx.x];
  float offset = *absmax_offset;
#endif
  __syncthreads();

#pragma unroll
  for (int v = 0; v < UNROLL; v++) {
    float scale = scales[v];
#if NESTED
    scale = add_rn(mul_rn(scale_table[scale_codes[v]], scale), offset);
#endif
    float values8[8];
#pragma unroll
    for (int i = 0; i < 8; i++)
      values8[i] = mul_rn(table[(words[v] >> (i * 4 ^ 4) & 15u) * 32 + lane], scale);
    store8(out, base + v * WARP_VECTOR + lane * 8, n, whole, values8);
  }
}
