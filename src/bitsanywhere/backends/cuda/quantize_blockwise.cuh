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
  for (u32 j = 0; j < 4; j++) {
    words[j] = 0;
#pragma unroll 1
    for (u32 i = 0; i < 32; i += 8) {
      while (starts[count] <= k) count++;
      words[j] |= count << i, k++;
    }
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// The starts lie where the table's last 1024 codes come in the end, since the table is all the
// shared memory that the smallest chips have.
INLINE void fill_table(const float* code, uint4* table) {
  static_assert(THREADS >= 64 && THREADS <= GRID_POINTS / 16, "");
  const u32 chunks = GRID_POINTS / 16, early = chunks - 64;
  u32* starts = reinterpret_cast<u32*>(table + early);
  for (u32 i = threadIdx.x; i < 256; i += blockDim.x)
    starts[i] = i < 255 ? first_point(midpoint8(code, i)) : GRID_POINTS;
  __syncthreads();
  uint4 codes;
  u32 chunk = threadIdx.x;
#pragma unroll 1
  for (; chunk < chunks; chunk += blockDim.x) {
    codes = sixteen_codes(starts, chunk * 16);
    if (chunk < early) table[chunk] = codes;
  }
  // A thread's last ones, none of whose others are late.
  chunk -= blockDim.x;
  __syncthreads();
  if (chunk >= early) table[chunk] = codes;
  __syncthreads();
}

INLINE u32 zero_code(const float* code) {
  u32 low = 0;
#pragma unroll 1
  for (u32 step = 128; step > 0; step /= 2)
    if (low + step <= 255 && midpoint8(code, low + step - 1) < 0.0) low += step;
  return low;
}

#if CENTERED
// The same in every warp.
INLINE float mean_of(const double* sums, u32 lane, i64 n) {
  double sum = sums[lane];
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, step);
  return (float)(sum / (double)n);
}
#endif

struct Codec {
  const Element* x;
  u8* out;
  const u8* table;
  // The code of an exact zero.
  u32 zero;
  float mean;

  INLINE float value(i64 i) const {
    float element = to_float(x[i]);
    return CENTERED ? add_rn(element, -mean) : element;
  }

  INLINE void load(Vector (&vectors)[UNROLL], i64 first) const {
    load_vectors(vectors, x + first);
#if CENTERED
#pragma unroll
    for (int v = 0; v < UNROLL; v++)
#pragma unroll
      for (int i = 0; i < 8; i++) vectors[v].words[i] = bits_of(add_rn(float_of(vectors[v].words[i]), -mean));
#endif
  }

  INLINE u32 code(float scaled) const {
    u32 found = table[grid_point(scaled)];
    return scaled == 0.0f ? zero : found;
  }

  INLINE void store(Vector& vector, float inverse, i64 first) const {
    replace_unscaled(vector, inverse, -1.0f);
    u32 words[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 8; i++) words[i / 4] |= code(mul_rn(element(vector, i), inverse)) << (i % 4 * 8);
    __stcs(reinterpret_cast<uint2*>(out + first), make_uint2(words[0], words[1]));
  }

  INLINE void store_some(i64 first, u32 count, float inverse) const {
#pragma unroll 1
    for (u32 i = threadIdx.x % 32; i < count; i += 32)
      out[first + i] = (u8)code(scaled(value(first + i), inverse, -1.0f));
  }
};

// parts: tiles of a block that is longer than one.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
quantize_blockwise(const Element* __restrict__ x, const float* __restrict__ code, u8* __restrict__ out,
                   float* __restrict__ absmax, i64 n, u32 parts
#if CENTERED
                   , const double* __restrict__ sums, float* __restrict__ mean_out
#endif
) {
  extern __shared__ uint4 shared[];
  const u8* table = reinterpret_cast<const u8*>(shared);
  fill_table(code, shared);
  float mean = 0.0f;
#if CENTERED
  mean = mean_of(sums, threadIdx.x % 32, n);
  if (blockIdx.x == 0 && threadIdx.x == 0) *mean_out = mean;
#endif
  quantize_tiles(Codec{x, out, table, zero_code(code), mean}, absmax, n, parts);
}
