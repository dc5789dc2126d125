// Rows to int8 codes and one float32 scale a row (math: ops/int8_vectorwise_quant.py).
//
// A thread block takes a row at a time: the largest magnitude below the threshold, then the codes.
// With VECTORS, a thread keeps so many vectors, its whole part of the row, in registers, and the
// rows are aligned and multiples of eight; without, a row is read twice. Columns that hold an outlier in
// any row are marked in a bit mask.
#include "int8_vector.cuh"
#include "overlap.cuh"

// Codes beyond k, up to code_width, become zero. code_stride: from row to row. mask: (k + 31) / 32
// words; not read if the threshold is NaN, which means that there is none.
struct Arguments {
  const Element* rows;
  signed char* codes;
  float* scales;
  u32* mask;
  i64 m, k, code_stride, code_width;
  float threshold;
  int aligned;
};

// The bits of a vector's largest magnitude, NaN counting as larger than infinity.
INLINE u32 largest_magnitude(const Vector& v) {
  u32 largest = 0;
#if DTYPE == 0
#pragma unroll
  for (int i = 0; i < VECTOR_WORDS; i++) largest = max(largest, v.words[i] & 0x7FFFFFFFu);
  return largest;
#else
  // In the upper halves of words.
#pragma unroll
  for (int i = 0; i < VECTOR_WORDS; i++)
    largest = max(largest, max(v.words[i] << 16 & 0x7FFF0000u, v.words[i] & 0x7FFF0000u));
  return bits_of(to_float((Element)(largest >> 16)));
#endif
}

// Whether a vector with this largest magnitude may hold outliers.
INLINE bool may_hold_outliers(const Arguments& args, u32 largest) {
  return args.threshold == args.threshold && !(float_of(largest) < args.threshold);
}

// The bits of a vector's largest magnitude below the threshold; marks outliers.
INLINE u32 vector_absmax(const Arguments& args, const Vector& v, i64 first) {
  u32 largest = largest_magnitude(v);
  if (!may_hold_outliers(args, largest)) return largest;
  largest = 0;
  u32 outliers = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    bool outlier = fabsf(v[i]) >= args.threshold;
    outliers |= (u32)outlier << i;
    largest = max(largest, outlier ? 0u : bits_of(v[i]) & 0x7FFFFFFFu);
  }
#if !VECTORS
  // A threshold that rounds to zero makes outliers of the zeros beyond k, too.
  if (first + 8 > args.k) outliers &= (1u << max(args.k - first, 0ll)) - 1u;
#endif
  if (outliers && first < args.k) {
    u32* word = args.mask + first / 32;
    u32 bits = outliers << first % 32;
    if (bits & ~*const_cast<volatile u32*>(word)) atomicOr(word, bits);
  }
  return largest;
}

INLINE u32 warp_max(u32 x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = max(x, __shfl_xor_sync(0xFFFFFFFFu, x, step));
  return x;
}

INLINE u32 block_max(u32 x) {
  __shared__ u32 of_warps[32];
  x = warp_max(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
  __syncthreads();
  return warp_max(threadIdx.x % 32 < blockDim.x / 32 ? of_warps[threadIdx.x % 32] : 0u);
}

INLINE void write_codes(const Arguments& args, const Vector& v, signed char* codes, i64 first, float inverse) {
  if (first >= args.code_width) return;
  u32 words[2] = {0, 0};
  if (int8_is_plain(inverse) && !may_hold_outliers(args, largest_magnitude(v))) {
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
      u32 low = __byte_perm(int8_code_plain(v[i], inverse), int8_code_plain(v[i + 1], inverse), 0x0040);
      u32 high = __byte_perm(int8_code_plain(v[i + 2], inverse), int8_code_plain(v[i + 3], inverse), 0x0040);
      words[i / 4] = __byte_perm(low, high, 0x5410);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (!(fabsf(v[i]) >= args.threshold)) words[i / 4] |= int8_code(v[i], inverse) << (i % 4 * 8);
  }
  store_codes(codes + first, words[0], words[1], args.code_width - first, VECTORS || args.code_stride % 8 == 0);
}

// Two blocks leave 64 registers, where float32 rows spill.
#if DTYPE == 0
#define BLOCKS_A_SM 1
#else
#define BLOCKS_A_SM 2
#endif

extern "C" __global__ void __launch_bounds__(512, BLOCKS_A_SM) int8_quantize(Arguments args) {
  await_previous();
  release_next();
  const i64 step = blockDim.x * 8, start = threadIdx.x * 8;
  for (i64 m = blockIdx.x; m < args.m; m += gridDim.x) {
    const Element* row = args.rows + m * args.k;
    signed char* codes = args.codes + m * args.code_stride;
    u32 largest = 0;
#if VECTORS
    Vector cached[VECTORS];
#pragma unroll
    for (int i = 0; i < VECTORS; i++) cached[i] = load_whole(row, start + i * step, args.k);
#pragma unroll
    for (int i = 0; i < VECTORS; i++) largest = max(largest, vector_absmax(args, cached[i], start + i * step));
#else
    for (i64 first = start; first < args.k; first += step)
      largest = max(largest, vector_absmax(args, load_vector(row, first, args.k, args.aligned), first));
#endif
    float absmax = float_of(block_max(largest)), inverse = int8_inverse(absmax);
    if (threadIdx.x == 0) args.scales[m] = absmax;
#if VECTORS
#pragma unroll
    for (int i = 0; i < VECTORS; i++) write_codes(args, cached[i], codes, start + i * step, inverse);
#else
    for (i64 first = start; first < args.code_width; first += step)
      write_codes(args, load_vector(row, first, args.k, args.aligned), codes, first, inverse);
#endif
  }
}
