// A scaled value to its 4-bit code, by one table look-up and one comparison.
//
// The format comes as macros: THRESHOLDS (15 ascending floats) and ORDER (codes by ascending
// interval, four bits each). The interval of s is #{t : s > t}, NaN going last.
//
// [-1, 1] is cut into the buckets ((b - 17) / 16, (b - 16) / 16], so narrow that none holds two
// thresholds inside. One at a bucket's upper end is not below any s of the bucket; all in lower
// buckets are below s; so one comparison settles the rest.
#pragma once
#include "convert.cuh"

#define BUCKETS 33

// A bucket's threshold, and the codes at or below it (lowest byte) and above it (next byte).
struct alignas(8) Entry4 {
  float threshold;
  u32 codes;
};

INLINE float threshold4(u32 i) {
  const float thresholds[15] = {THRESHOLDS};
  return thresholds[i];
}

INLINE u32 order4(u32 i) { return (u32)(ORDER >> 4 * i) & 15u; }

// What is looked up for a scaled value: NaN goes where 1 goes, and a product that exceeds 1 by one
// rounding.
INLINE float clamp4(float s) {
#ifdef __CUDA_ARCH__
  return fminf(s, 1.0f);
#else
  return s < 1.0f ? s : 1.0f;
#endif
}

// The bucket of a clamped value, counted from FIRST_BUCKET: the bits of a float whose last one is
// worth 1, so that its addition rounds up to whole numbers.
#define FIRST_BUCKET (0x4B400000u - 16u)

INLINE u32 bucket4(float s) {
#ifdef __CUDA_ARCH__
  return bits_of(__fmaf_ru(s, 16.0f, 12582912.0f));
#else
  return bits_of(std::ceil(s * 16.0f) + 12582912.0f);
#endif
}

INLINE u32 code4(float s, Entry4 entry) {
  bool above = s > entry.threshold;
#ifdef __CUDA_ARCH__
  return __byte_perm(entry.codes, 0u, above ? 0x4441u : 0x4440u);
#else
  return entry.codes >> (above ? 8 : 0) & 255u;
#endif
}

INLINE Entry4 entry4(u32 bucket) {
  Entry4 entry = {float_of(0x7F800000u), 0u};
  u32 below = 0;
  for (u32 i = 0; i < 15; i++) {
    float t = threshold4(i);
    u32 at = bucket4(t);
    below += at < bucket + FIRST_BUCKET;
    bool inside = 16.0f * t < float_of(at) - 12582912.0f;
    if (at == bucket + FIRST_BUCKET && inside) entry.threshold = t;
  }
  entry.codes = order4(below) | order4(below < 15u ? below + 1u : 15u) << 8;
  return entry;
}
