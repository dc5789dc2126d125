// Values of a block, scaled to [-1, 1], to the codes of an 8-bit state, as codec8.cuh defines them,
// for any ascending codebook, and fast: one look-up and one comparison. A host compiler accepts it.
//
// Code c is left for a higher one at starts[c]. With 2^-17 added, a magnitude lies in one of 17
// octaves, each divided into 128 buckets by its upper 7 bits of mantissa. A bucket's entry holds the
// codes of both its ends, and up to which of the 65536 other mantissas the first is right. A
// codebook of which two starts that differ share a bucket is served by bisection over the starts.
//
// Other than codec8.cuh has it, a start may be off by one float, as adding 2^-17 is rounded: upwards,
// so that zero alone stays at 2^-17.
#pragma once
#include "codec8.cuh"

#define BUCKETS (17 * 128 + 1)
#define FIRST_BUCKET (110u << 7)
#define LIFT 7.62939453125e-06f

// Floats in ascending order as ascending integers, and back.
INLINE int rank_of(float x) { return (int)bits_of(x) ^ ((int)bits_of(x) >> 31 & 0x7FFFFFFF); }
INLINE float of_rank(int rank) { return float_of((u32)(rank ^ (rank >> 31 & 0x7FFFFFFF))); }

// The smallest value in [-1, 1] whose grid point is at least `point`; infinite if there is none.
INLINE float first_value(u32 point) {
  if (point >= GRID_POINTS) return float_of(0x7F800000u);
  i64 low = rank_of(-1.0f), high = rank_of(1.0f);
  while (low < high) {
    i64 middle = (low + high) >> 1;
    if (grid_point(of_rank((int)middle)) >= point) high = middle;
    else low = middle + 1;
  }
  return of_rank((int)low);
}

// Where code c < 255 is left for a higher one.
INLINE float start8(const float* code, u32 c) { return first_value(first_point(midpoint8(code, c))); }

// The code of s: the number of starts at or below it. starts: 255, ascending.
INLINE u32 code_by_bisection(const float* starts, float s) {
  u32 code = 0;
  for (u32 step = 128; step > 0; step /= 2)
    if (starts[code + step - 1] <= s) code += step;
  return code;
}

// The code nearest to zero, the lower one on a tie.
INLINE u32 zero_code8(const float* code) {
  u32 low = 0;
  for (u32 step = 128; step > 0; step /= 2)
    if (low + step <= 255 && midpoint8(code, low + step - 1) < 0.0) low += step;
  return low;
}

// A value by the inverse of its block's absmax. A zero is a positive one, as a negative one would have a
// code of the negative values.
INLINE float relative(float x, float inverse) { return add_rn(mul_rn(x, inverse), 0.0f); }

// What a magnitude is looked up by: with 2^-17 added, rounded up.
INLINE u32 lifted(float magnitude) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(__fadd_ru(magnitude, LIFT));
#else
  float sum = magnitude + LIFT;
  return bits_of(sum) + ((double)sum - LIFT < magnitude);
#endif
}

// The entry of a bucket: a mantissa, the code of larger ones, the code of those up to it. exact:
// cleared if one comparison cannot tell the bucket's codes.
INLINE u32 entry8(const float* starts, u32 zero, u32 bucket, bool negative, bool& exact) {
  u32 codes[2], bits = (FIRST_BUCKET + bucket) << 16;
  for (int end = 0; end < 2; end++) {
    // The magnitude that is lifted to the end of the bucket.
    float size = float_of(bits | (end ? 0xFFFFu : 0u)) - LIFT;
    codes[end] = code_by_bisection(starts, negative ? -size : size);
  }
  // Negative values up to 2^-25 share their grid point with positive ones.
  if (bucket == 0 && negative)
    return 0x8000u << 16 | codes[1] << 8 | code_by_bisection(starts, float_of(1));
  if (bucket == 0) return codes[1] << 8 | zero;
  u32 near = codes[0], far = codes[1];
  if (near == far) return 0xFFFFu << 16 | near << 8 | near;
  // Above zero codes change at a start, below zero just beyond it.
  float first = starts[negative ? near - 1 : near], last = starts[negative ? far : far - 1];
  if (first != last) exact = false;
  u32 start = lifted(absolute(first));
  return (start - (negative ? 0u : 1u)) << 16 | far << 8 | near;
}
