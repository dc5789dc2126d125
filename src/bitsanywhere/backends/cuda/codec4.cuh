// A scaled value to its 4-bit code, by one table look-up and one comparison.
//
// The format comes as macros: THRESHOLDS (15 ascending floats), ORDER
// (codes by ascending interval, four bits each) and MIRRORED. The interval of s is #{t : s > t}, NaN going last.
//
// [-1, 1] is cut into buckets 1/16 wide, so narrow that none holds two thresholds. The bucket is a
// monotone function of s, and the thresholds are put into buckets by that same function, so all
// thresholds in lower buckets are below s and one comparison settles the rest: exact, whatever
// the rounding in the bucket function. MIRRORED formats (FP4, whose thresholds -1/384, 0 and 1/384
// would share a bucket) are looked up by magnitude, with one table half for each sign.
#pragma once
#include "convert.cuh"

#define BUCKETS (MIRRORED ? 34 : 33)

// Codes on both sides of a bucket's threshold. threshold: order-preserving bits, see key4.
struct alignas(8) Entry4 {
  u32 threshold;
  u32 codes;
};

INLINE float threshold4(u32 i) {
  const float thresholds[15] = {THRESHOLDS};
  return thresholds[i];
}

INLINE u32 order4(u32 i) { return (u32)(ORDER >> 4 * i) & 15u; }

// 16 * s, rounded to an integer, for |s| <= 1, by way of the low bits of a float near 2^23 * 1.5.
INLINE u32 sixteenths(float s) { return bits_of(add_rn(mul_rn(s, 16.0f), 12582912.0f)) - 0x4B400000u; }

// Where a value is looked up, and what is compared with the entry's threshold.
struct Key4 {
  u32 bucket;
  float value;
  u32 magnitude;
};

INLINE Key4 key4(float s) {
  Key4 key;
  // NaN goes where 1 goes. A product may exceed 1 in magnitude by one rounding.
#ifdef __CUDA_ARCH__
  s = fminf(s, 1.0f);
#else
  s = s < 1.0f ? s : 1.0f;
#endif
#if MIRRORED
  u32 not_positive = s > 0.0f ? 0u : 1u;
  u32 magnitude = bits_of(s) & 0x7FFFFFFFu;
  key.bucket = sixteenths(float_of(magnitude)) + not_positive * 17u;
  // A tie goes to the lower value: for negative ones the larger magnitude.
  key.magnitude = magnitude + not_positive;
#else
  key.bucket = sixteenths(s) + 16u;
  key.value = s;
#endif
  return key;
}

INLINE u32 code4(Key4 key, Entry4 entry) {
#if MIRRORED
  return (entry.codes >> (key.magnitude > entry.threshold ? 8 : 0)) & 15u;
#else
  return entry.codes + (key.value > float_of(entry.threshold) ? 1u : 0u);
#endif
}

INLINE Entry4 entry4(u32 bucket) {
  Entry4 entry;
  u32 below = 0;
#if MIRRORED
  u32 negative = bucket >= 17u;
  entry.threshold = 0x7FFFFFFFu;
  for (u32 i = 0; i < 7; i++) {
    float t = threshold4(8 + i);
    u32 at = sixteenths(t) + negative * 17u;
    below += at < bucket;
    if (at == bucket) entry.threshold = bits_of(t);
  }
  u32 above = below < 7u ? below + 1u : 7u;
  u32 low = negative ? order4(7u - below) : order4(8u + below);
  u32 high = negative ? order4(7u - above) : order4(8u + above);
  entry.codes = low | high << 8;
#else
  entry.threshold = 0x7F800000u;
  for (u32 i = 0; i < 15; i++) {
    float t = threshold4(i);
    u32 at = sixteenths(t) + 16u;
    below += at < bucket;
    if (at == bucket) entry.threshold = bits_of(t);
  }
  entry.codes = order4(below);
#endif
  return entry;
}
