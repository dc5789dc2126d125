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
  int low = rank_of(-1.0f), high = rank_of(1.0f);
  while (low < high) {
    int middle = (low + high) >> 1;
    if (grid_point(of_rank(middle)) >= point) high = middle;
    else low = middle + 1;
  }
  return of_rank(low);
}

// Where code c is left for a higher one; infinite for 255.
INLINE float start8(const float* code, u32 c) {
  return first_value(c < 255 ? first_point(midpoint8(code, c)) : GRID_POINTS);
}

// The code of s: the number of starts at or below it. starts: 256, ascending, the last infinite.
INLINE u32 code_by_bisection(const float* starts, float s) {
  u32 code = 0;
  for (u32 step = 128; step > 0; step /= 2)
    if (starts[code + step - 1] <= s) code += step;
  return code;
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

// The entries of a sign's buckets in ascending order. The codes at a bucket's ends are a few steps from
// those of the bucket before.
struct Entries {
  const float* starts;
  u32 zero, code;  // of zero; of the value farthest from zero so far
  bool negative, exact;  // exact: one comparison tells the codes of each bucket so far

  // first: of the buckets.
  INLINE Entries(const float* starts, u32 zero, bool negative, u32 first)
      : starts(starts), zero(zero), negative(negative), exact(true) {
    code = code_by_bisection(starts, end_of(first, 0));
  }

  // The value that is lifted to a bucket's end, mantissa 0 or 65535.
  INLINE float end_of(u32 bucket, u32 mantissa) const {
    float size = float_of((FIRST_BUCKET + bucket) << 16 | mantissa) - LIFT;
    // Negative values up to 2^-25 share their grid point with positive ones.
    return !negative ? size : size > 0.0f ? -size : float_of(1);
  }

  INLINE u32 code_at(u32 bucket, u32 mantissa) {
    float s = end_of(bucket, mantissa);
    while (negative ? code > 0 && starts[code - 1] > s : starts[code] <= s) code += negative ? -1 : 1;
    return code;
  }

  // The entry of a bucket: a mantissa, the code of larger ones, the code of those up to it.
  INLINE u32 next(u32 bucket) {
    u32 near = code_at(bucket, 0), far = code_at(bucket, 0xFFFF);
    if (bucket == 0) return negative ? 0x8000u << 16 | far << 8 | near : far << 8 | zero;
    if (near == far) return 0xFFFFu << 16 | near << 8 | near;
    // Above zero codes change at a start, below zero just beyond it.
    float first = starts[negative ? near - 1 : near], last = starts[negative ? far : far - 1];
    if (first != last) exact = false;
    u32 start = lifted(absolute(first));
    return (start - (negative ? 0u : 1u)) << 16 | far << 8 | near;
  }
};
