// What the quantizing kernels share: a warp's tile of elements and the absmax of its blocks.
//
// Lane l of a warp holds, for each of UNROLL vectors v, the 8 consecutive elements from
// tile * TILE + v * 256 + l * 8 on: loads of 16 bytes (32 for float32), side by side. A block of
// up to 256 elements is held by BLOCKSIZE / 8 neighbouring lanes of one vector; a larger one by all lanes
// of BLOCKSIZE / 256 consecutive vectors. BLOCKSIZE is at most TILE; a longer block is the tiles of `parts`
// neighbouring warps. A tile that the tensor does not fill is taken element by element.
#pragma once
#include "threads.cuh"

#define WARP_VECTOR 256
#define UNROLL (DTYPE == 0 ? 2 : 4)
#define TILE (UNROLL * WARP_VECTOR)
#define BLOCK_VECTORS (BLOCKSIZE > WARP_VECTOR ? BLOCKSIZE / WARP_VECTOR : 1)
// Whether `parts` may be more than 1.
#define LONGEST (BLOCKSIZE == TILE)
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

// Eight elements, at a multiple of 16 bytes.
INLINE Vector load_vector(const Element* elements) {
  Vector v;
  const uint4* source = reinterpret_cast<const uint4*>(elements);
#pragma unroll
  for (int i = 0; i < VECTOR_WORDS / 4; i++) {
    uint4 part = __ldcs(source + i);
    v.words[4 * i] = part.x, v.words[4 * i + 1] = part.y;
    v.words[4 * i + 2] = part.z, v.words[4 * i + 3] = part.w;
  }
  return v;
}

INLINE void load_vectors(Vector (&vectors)[UNROLL], const Element* tile) {
#pragma unroll
  for (int v = 0; v < UNROLL; v++) vectors[v] = load_vector(tile + v * WARP_VECTOR + threadIdx.x % 32 * 8);
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

// Of the lanes that hold a block.
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

// Stores the absmax of the blocks of a tile, each by the lane that has it.
INLINE void store_absmax(float mine, float* absmax, u32 lane) {
  if (lane % LANES < HELD) absmax[lane % LANES * (32 / LANES) + lane / LANES] = mine;
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

INLINE u32 largest_of_lanes(u32 x) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) x = max(x, __shfl_xor_sync(FULL, x, step));
  return x;
}

// The largest of what the `parts` warps of a block hold, in all their lanes.
INLINE float largest_of_warps(float mine, u32 parts, u32 lane, u32 turn) {
  // By turns, so that no warp writes what another still reads.
  __shared__ u32 maxima[2][32];
  u32 warp = threadIdx.x / 32;
  if (lane == 0) maxima[turn % 2][warp] = bits_of(mine);
  sync_threads(warp / parts, parts * 32);
  return float_of(largest_of_lanes(maxima[turn % 2][warp - warp % parts + lane % parts]));
}

// The absmax of `count` elements from `first` on.
template <class Codec>
INLINE float absmax_of(const Codec& codec, i64 first, u32 count, u32 lane) {
  u32 largest = 0;
#pragma unroll 1
  for (u32 i = lane; i < count; i += 32) largest = max(largest, bits_of(codec.value(first + i)) & 0x7FFFFFFFu);
  return float_of(largest_of_lanes(largest));
}

// One element scaled; where the scale is 0, as replace_unscaled has it.
INLINE float scaled(float value, float scale, float odd) {
  if (scale != 0.0f) return mul_rn(value, scale);
  return (bits_of(value) & 0x7F800000u) == 0x7F800000u ? odd : 0.0f;
}

// Quantizes n elements. A Codec has
//   float value(i64 i)                                       element i
//   void load(Vector (&vectors)[UNROLL], i64 first)          the tile from there on
//   void store(Vector& vector, float inverse, i64 first)     codes of 8 elements
//   void store_some(i64 first, u32 count, float inverse)     codes of up to a block, by a warp
// where `inverse` is that of the absmax.
template <class Codec>
INLINE void quantize_tiles(const Codec& codec, float* absmax, i64 n, u32 parts) {
  if (!LONGEST) parts = 1;
  u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, turn = 0;
  i64 base = ((i64)blockIdx.x * warps + warp) * TILE;
  // Warps with parts of one block go on together.
  for (; base - warp % parts * TILE < n; base += (i64)gridDim.x * warps * TILE, turn++) {
    Vector vectors[UNROLL];
    u32 count = (u32)max(min(n - base, (i64)TILE), (i64)0);
    float mine = 0.0f;
    if (count == TILE) {
      codec.load(vectors, base);
      mine = block_absmax(vectors, lane);
    } else if (LONGEST) {
      mine = absmax_of(codec, base, count, lane);
    }
    if (parts > 1) mine = largest_of_warps(mine, parts, lane, turn);
    float* scales = absmax + base / (parts * BLOCKSIZE);
    if (count == TILE) {
      if (warp % parts == 0) store_absmax(mine, scales, lane);
      mine = reciprocal(mine);
#pragma unroll
      for (int v = 0; v < UNROLL; v++)
        codec.store(vectors[v], of_block(mine, v / BLOCK_VECTORS), base + v * WARP_VECTOR + lane * 8);
      continue;
    }
#pragma unroll 1
    for (u32 first = 0; first < count; first += BLOCKSIZE) {
      u32 some = min(count - first, (u32)BLOCKSIZE);
      if (!LONGEST) mine = absmax_of(codec, base + first, some, lane);
      if (lane == 0 && warp % parts == 0) scales[first / BLOCKSIZE] = mine;
      codec.store_some(base + first, some, reciprocal(mine));
    }
  }
}
