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
// Blocks of which a lane holds a part: block d in the vectors from d * BLOCK_VECTORS on.
#define HELD (UNROLL / BLOCK_VECTORS)
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

// Eight elements of a tile from index first on; beyond `count` they are zero. whole: none is, and the
// tile begins at a multiple of 16 bytes.
INLINE Vector load_vector(const Element* tile, u32 first, u32 count, bool whole) {
  Vector v;
  if (whole) {
    const uint4* source = reinterpret_cast<const uint4*>(tile + first);
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
    v.words[i] = first + i < count ? tile[first + i] : 0u;
#else
    u32 at = first + 2 * i;
    u32 low = at < count ? tile[at] : 0u, high = at + 1 < count ? tile[at + 1] : 0u;
    v.words[i] = low | high << 16;
#endif
  }
  return v;
}

#define FULL 0xFFFFFFFFu
#if DTYPE == 0
#define MAGNITUDE 0x7FFFFFFFu
INLINE u32 larger(u32 a, u32 b) { return max(a, b); }
#else
#define MAGNITUDE 0x7FFF7FFFu
// Of two pairs of magnitudes.
INLINE u32 larger(u32 a, u32 b) {
#if __CUDA_ARCH__ >= 900
  u32 out;
  asm("max.u16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
  return out;
#else
  return __vmaxu2(a, b);
#endif
}
#endif

INLINE u32 larger_of_lanes(u32 x) {
#pragma unroll
  for (int step = 1; step < LANES; step *= 2) x = larger(x, __shfl_xor_sync(FULL, x, step));
  return x;
}

// The absmax of block number lane % HELD of those that the lane holds parts of; NaN counts as larger
// than infinity.
INLINE float block_absmax(const Vector (&tile)[UNROLL], u32 lane) {
  u32 largest[HELD];
#pragma unroll
  for (int d = 0; d < HELD; d++) {
    largest[d] = 0;
#pragma unroll
    for (int v = d * BLOCK_VECTORS; v < (d + 1) * BLOCK_VECTORS; v++) {
#pragma unroll
      for (int i = 0; i < VECTOR_WORDS; i++) largest[d] = larger(largest[d], tile[v].words[i] & MAGNITUDE);
    }
  }
#if DTYPE == 0
  u32 mine = larger_of_lanes(largest[0]);
#pragma unroll
  for (int d = 1; d < HELD; d++) {
    u32 other = larger_of_lanes(largest[d]);
    if (lane % HELD == d) mine = other;
  }
  return float_of(mine);
#else
  u32 mine = 0;
#pragma unroll
  for (int d = 0; d < HELD; d += 2) {
    // Two blocks at a time, one in each half.
    u32 first = largest[d], second = largest[d + 1 < HELD ? d + 1 : d];
    u32 pair = larger_of_lanes(larger(__byte_perm(first, second, 0x5410), __byte_perm(first, second, 0x7632)));
    if (d == 0 || lane % HELD >= d) mine = pair;
  }
  return to_float((Element)(lane % HELD % 2 ? mine >> 16 : mine));
#endif
}

// 1 / absmax, finite, and 0 where absmax is 0 or NaN.
INLINE float reciprocal(float absmax) {
  return absmax > 0.0f ? fminf(__frcp_rn(absmax), 3.402823466e38f) : 0.0f;
}

// Stores the absmax of the blocks of a tile of `count` elements, each by the lane that has it.
INLINE void store_absmax(float mine, float* absmax, u32 count, u32 lane, bool whole) {
  u32 block = lane % LANES * (32 / LANES) + lane / LANES;
  if (lane % LANES < HELD && (whole || block * BLOCKSIZE < count)) absmax[block] = mine;
}

// What scales block d of those that the lane holds parts of; mine: of the lane's own one.
INLINE float of_block(float mine, int d) { return HELD == 1 ? mine : __shfl_sync(FULL, mine, d, LANES); }

// Where the scale is 0, and so every product 0 or NaN: makes it 1, and the elements 0 or, for NaN, `odd`.
INLINE void replace_unscaled(Vector& v, float& scale, float odd) {
  if (scale != 0.0f) return;
  scale = 1.0f;
#pragma unroll
  for (int i = 0; i < VECTOR_WORDS; i++) {
#if DTYPE == 0
    v.words[i] = (v.words[i] & 0x7F800000u) == 0x7F800000u ? bits_of(odd) : 0u;
#else
    const u32 exponent = DTYPE == 1 ? 0x7C00u : 0x7F80u, element = from_float(odd);
    u32 low = (v.words[i] & exponent) == exponent ? element : 0u;
    u32 high = (v.words[i] >> 16 & exponent) == exponent ? element : 0u;
    v.words[i] = low | high << 16;
#endif
  }
}
