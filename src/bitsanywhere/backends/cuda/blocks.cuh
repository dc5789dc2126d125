// What the quantizing kernels share: a warp's tile of elements and the absmax of its blocks.
//
// Lane l of a warp holds, for each of UNROLL vectors v, the 8 consecutive elements from
// tile * TILE + v * 256 + l * 8 on: loads of 16 bytes (32 for float32), side by side. A block of
// up to 256 elements is held by BLOCKSIZE / 8 neighbouring lanes of one vector; a larger one by all lanes
// of BLOCKSIZE / 256 consecutive vectors.
#pragma once
#include "convert.cuh"

#define WARP_VECTOR 256
#define LEAST_UNROLL (DTYPE == 0 ? 2 : 4)
#define BLOCK_VECTORS (BLOCKSIZE > WARP_VECTOR ? BLOCKSIZE / WARP_VECTOR : 1)
#define UNROLL (BLOCK_VECTORS > LEAST_UNROLL ? BLOCK_VECTORS : LEAST_UNROLL)
#define TILE (UNROLL * WARP_VECTOR)
#define LANES (BLOCKSIZE < WARP_VECTOR ? BLOCKSIZE / 8 : 32)
#define VECTOR_WORDS (DTYPE == 0 ? 8 : 4)

struct Vector {
  u32 words[VECTOR_WORDS];
};

INLINE float element(const Vector& v, int i) {
#if DTYPE == 0
  return float_of(v.words[i]);
#elif DTYPE == 1
  return half_to_float(v.words[i / 2] >> (i % 2 * 16) & 0xFFFFu);
#else
  return i % 2 ? float_of(v.words[i / 2] & 0xFFFF0000u) : float_of(v.words[i / 2] << 16);
#endif
}

// Eight elements from index first on; beyond n they are zero. whole: none is, and x + first is
// aligned to 16 bytes.
INLINE Vector load_vector(const Element* x, i64 first, i64 n, bool whole) {
  Vector v;
  if (whole) {
    const uint4* source = reinterpret_cast<const uint4*>(x + first);
#pragma unroll
    for (int i = 0; i < VECTOR_WORDS / 4; i++) {
      uint4 part = __ldcs(source + i);
      v.words[4 * i] = part.x, v.words[4 * i + 1] = part.y;
      v.words[4 * i + 2] = part.z, v.words[4 * i + 3] = part.w;
    }
    return v;
  }
#pragma unroll
  for (int i = 0; i < VECTOR_WORDS; i++) {
#if DTYPE == 0
    v.words[i] = first + i < n ? x[first + i] : 0u;
#else
    i64 at = first + 2 * i;
    u32 low = at < n ? x[at] : 0u, high = at + 1 < n ? x[at + 1] : 0u;
    v.words[i] = low | high << 16;
#endif
  }
  return v;
}

// The bits of the largest magnitude in each vector's block; NaN counts as larger than infinity.
INLINE void block_absmax(const Vector (&tile)[UNROLL], u32 (&largest)[UNROLL]) {
#pragma unroll
  for (int v = 0; v < UNROLL; v++) {
    largest[v] = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) largest[v] = max(largest[v], bits_of(element(tile[v], i)) & 0x7FFFFFFFu);
  }
#pragma unroll
  for (int v = 0; v < UNROLL; v += BLOCK_VECTORS) {
#pragma unroll
    for (int w = 1; w < BLOCK_VECTORS; w++) largest[v] = max(largest[v], largest[v + w]);
#pragma unroll
    for (int step = 1; step < LANES; step *= 2)
      largest[v] = max(largest[v], __shfl_xor_sync(0xFFFFFFFFu, largest[v], step));
#pragma unroll
    for (int w = 1; w < BLOCK_VECTORS; w++) largest[v + w] = largest[v];
  }
}

// 1 / absmax, finite, and 0 where absmax is 0 or NaN.
INLINE float reciprocal(float absmax) {
  return absmax > 0.0f ? fminf(__fdiv_rn(1.0f, absmax), 3.402823466e38f) : 0.0f;
}

// Stores the absmax of the blocks that begin in the tile, by the lane that holds each one's start.
INLINE void store_absmax(const u32 (&largest)[UNROLL], float* absmax, i64 base, i64 n, u32 lane) {
#pragma unroll
  for (int v = 0; v < UNROLL; v += BLOCK_VECTORS) {
    i64 first = base + v * WARP_VECTOR + lane * 8;
    if (lane % LANES == 0 && first < n) absmax[first / BLOCKSIZE] = float_of(largest[v]);
  }
}
