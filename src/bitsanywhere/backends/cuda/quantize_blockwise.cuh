// quantize_blockwise: 8-bit codes and one float32 absmax a block (math: ops/quantize_blockwise.py).
//
// Each thread block fills a table of the code of all 65536 grid points (codec8.cuh) in shared
// memory and then works through many tiles (blocks.cuh), one look-up an element. The codebook is
// a tensor, so nothing about it is known before. CENTERED: float32 elements less their mean, which is
// made of 32 parts of their sum (sum_parts.cuh) and stored.
#include "blocks.cuh"
#include "codec8.cuh"

// The codes of the 16 grid points from k on, as bytes. starts: ascending, the last above every k.
INLINE uint4 sixteen_codes(const u32* starts, u32 k) {
  // The number of starts at or below k, by bisection.
  u32 count = 0;
#pragma unroll
  for (u32 step = 128; step > 0; step /= 2)
    if (starts[count + step - 1] <= k) count += step;
  u32 words[4];
#pragma unroll
  for (u32 i = 0; i < 16; i++) {
    while (starts[count] <= k + i) count++;
    words[i / 4] = i % 4 ? words[i / 4] | count << (i % 4 * 8) : count;
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// The starts lie where the table's last 1024 codes come in the end, since the table is all the
// shared memory that the smallest chips have.
INLINE void fill_table(const float* code, uint4* table) {
  const u32 chunks = GRID_POINTS / 16, early = chunks - 64;
  u32* starts = reinterpret_cast<u32*>(table + early);
  for (u32 i = threadIdx.x; i < 256; i += blockDim.x)
    starts[i] = i < 255 ? first_point(midpoint8(code, i)) : GRID_POINTS;
  __syncthreads();
  for (u32 chunk = threadIdx.x; chunk < early; chunk += blockDim.x)
    table[chunk] = sixteen_codes(starts, chunk * 16);
  uint4 late;
  if (threadIdx.x < 64) late = sixteen_codes(starts, (early + threadIdx.x) * 16);
  __syncthreads();
  if (threadIdx.x < 64) table[early + threadIdx.x] = late;
  __syncthreads();
}

INLINE u32 zero_code(const float* code) {
  u32 low = 0;
#pragma unroll
  for (u32 step = 128; step > 0; step /= 2)
    if (low + step <= 255 && midpoint8(code, low + step - 1) < 0.0) low += step;
  return low;
}

#if CENTERED
// The same in every warp.
INLINE float mean_of(const double* parts, u32 lane, i64 n) {
  double sum = parts[lane];
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, step);
  return (float)(sum / (double)n);
}

INLINE void subtract(Vector& v, float mean, u32 first, u32 count) {
#pragma unroll
  for (int i = 0; i < 8; i++)
    if (first + i < count) v.words[i] = bits_of(add_rn(float_of(v.words[i]), -mean));
}
#endif

// A tile of `count` elements, and what is made of it. zero: the code of an exact zero.
template <bool WHOLE>
INLINE void quantize_tile(const Element* tile, u8* out, float* absmax, u32 count, u32 lane, const u8* table,
                          u32 zero, float mean) {
  Vector vectors[UNROLL];
#pragma unroll
  for (int v = 0; v < UNROLL; v++) vectors[v] = load_vector(tile, v * WARP_VECTOR + lane * 8, count, WHOLE);
#if CENTERED
#pragma unroll
  for (int v = 0; v < UNROLL; v++) subtract(vectors[v], mean, v * WARP_VECTOR + lane * 8, count);
#endif
  float mine = block_absmax(vectors, lane);
  store_absmax(mine, absmax, count, lane, WHOLE);
  mine = reciprocal(mine);
#pragma unroll
  for (int v = 0; v < UNROLL; v++) {
    float inverse = of_block(mine, v / BLOCK_VECTORS);
    replace_unscaled(vectors[v], inverse, -1.0f);
    u32 words[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 8; i++) {
      float scaled = mul_rn(element(vectors[v], i), inverse);
      u32 found = table[grid_point(scaled)];
      words[i / 4] |= (scaled == 0.0f ? zero : found) << (i % 4 * 8);
    }
    u32 first = v * WARP_VECTOR + lane * 8;
    if (WHOLE) {
      __stcs(reinterpret_cast<uint2*>(out + first), make_uint2(words[0], words[1]));
    } else {
      for (int i = 0; i < 8; i++)
        if (first + i < count) out[first + i] = (u8)(words[i / 4] >> (i % 4 * 8));
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
quantize_blockwise(const Element* __restrict__ x, const float* __restrict__ code, u8* __restrict__ out,
                   float* __restrict__ absmax, i64 n, int aligned
#if CENTERED
                   , const double* __restrict__ parts, float* __restrict__ mean_out
#endif
) {
  extern __shared__ uint4 shared[];
  const u8* table = reinterpret_cast<const u8*>(shared);
  fill_table(code, shared);
  u32 lane = threadIdx.x % 32, zero = zero_code(code);
  float mean = 0.0f;
#if CENTERED
  mean = mean_of(parts, lane, n);
  if (blockIdx.x == 0 && threadIdx.x == 0) *mean_out = mean;
#endif

  i64 tiles = (n + TILE - 1) / TILE;
  i64 warps = (i64)gridDim.x * (blockDim.x / 32);
  for (i64 tile = (i64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; tile < tiles; tile += warps) {
    u64 base = (u64)tile * TILE;
    u32 count = (u32)min(n - (i64)base, (i64)TILE);
    float* scales = absmax + base / BLOCKSIZE;
    if (aligned && count == TILE)
      quantize_tile<true>(x + base, out + base, scales, count, lane, table, zero, mean);
    else
      quantize_tile<false>(x + base, out + base, scales, count, lane, table, zero, mean);
  }
}
