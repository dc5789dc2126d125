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

INLINE void subtract(Vector& v, float mean, i64 first, i64 n) {
#pragma unroll
  for (int i = 0; i < 8; i++)
    if (first + i < n) v.words[i] = bits_of(add_rn(float_of(v.words[i]), -mean));
}
#endif

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
  u32 zero = zero_code(code);
#if CENTERED
  float mean = mean_of(parts, threadIdx.x % 32, n);
  if (blockIdx.x == 0 && threadIdx.x == 0) *mean_out = mean;
#endif

  u32 lane = threadIdx.x % 32;
  i64 tiles = (n + TILE - 1) / TILE;
  i64 warps = (i64)gridDim.x * (blockDim.x / 32);
  for (i64 tile = (i64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; tile < tiles; tile += warps) {
    i64 base = tile * TILE;
    bool whole = aligned && base + TILE <= n;
    Vector vectors[UNROLL];
#pragma unroll
    for (int v = 0; v < UNROLL; v++)
      vectors[v] = load_vector(x, base + v * WARP_VECTOR + lane * 8, n, whole);
#if CENTERED
#pragma unroll
    for (int v = 0; v < UNROLL; v++) subtract(vectors[v], mean, base + v * WARP_VECTOR + lane * 8, n);
#endif
    u32 largest[UNROLL];
    block_absmax(vectors, largest);
    store_absmax(largest, absmax, base, n, lane);
#pragma unroll
    for (int v = 0; v < UNROLL; v++) {
      float inverse = reciprocal(float_of(largest[v]));
      u32 words[2] = {0, 0};
#pragma unroll
      for (int i = 0; i < 8; i++) {
        float scaled = mul_rn(element(vectors[v], i), inverse);
        u32 found = table[grid_point(scaled)];
        words[i / 4] |= (scaled == 0.0f ? zero : found) << (i % 4 * 8);
      }
      i64 first = base + v * WARP_VECTOR + lane * 8;
      if (whole) {
        __stcs(reinterpret_cast<uint2*>(out + first), make_uint2(words[0], words[1]));
      } else {
        for (int i = 0; i < 8; i++)
          if (first + i < n) out[first + i] = (u8)(words[i / 4] >> (i % 4 * 8));
      }
    }
  }
}
