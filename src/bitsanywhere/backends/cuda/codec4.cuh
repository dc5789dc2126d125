// A scaled value to its 4-bit code, by one table look-up and one comparison.
//
// The formats come as macros: THRESHOLDS (15 ascending floats each) and ORDERS (codes by ascending
// interval, four bits each). The interval of s is #{t : s > t}, NaN going last.
//
// [-1, 1] is cut into the buckets ((b - 17) / 16, (b - 16) / 16], so narrow that none holds two
// thresholds inside. One at a bucket's upper end is not below any s of the bucket; all in lower
// buckets are below s; so one comparison settles the rest. The last bucket is for a product that
// exceeds 1 by one rounding.
#pragma once
#include "convert.cuh"

#define BUCKETS 34

// A bucket's threshold; the code at or below it, and in the upper half what to flip for that above it.
struct alignas(8) Entry4 {
  float threshold;
  u32 codes;
};

INLINE float threshold4(u32 format, u32 i) {
  static constexpr float thresholds[][15] = {THRESHOLDS};
  return thresholds[format][i];
}

INLINE u32 order4(u32 format, u32 i) {
  static constexpr u64 orders[] = {ORDERS};
  return (u32)(orders[format] >> 4 * i) & 15u;
}

// The bucket of a scaled value, which is not NaN, counted from FIRST_BUCKET: the bits of a float whose
// last one is worth 1, so that its addition rounds up to whole numbers.
#define FIRST_BUCKET (0x4B400000u - 16u)

INLINE u32 bucket4(float s) {
#ifdef __CUDA_ARCH__
  return bits_of(__fmaf_ru(s, 16.0f, 12582912.0f));
#else
  return bits_of(std::ceil(s * 16.0f) + 12582912.0f);
#endif
}

INLINE Entry4 entry4(u32 bucket, u32 format) {
  Entry4 entry = {float_of(0x7F800000u), 0u};
  u32 below = 0;
#pragma unroll 1
  for (u32 i = 0; i < 15; i++) {
    float t = threshold4(format, i);
    u32 at = bucket4(t);
    below += at < bucket + FIRST_BUCKET;
    bool inside = 16.0f * t < float_of(at) - 12582912.0f;
    if (at == bucket + FIRST_BUCKET && inside) entry.threshold = t;
  }
  u32 low = order4(format, below), high = order4(format, below < 15u ? below + 1u : 15u);
  entry.codes = low | (low ^ high) << 16;
  return entry;
}

// The code of s by the entry of its bucket.
INLINE u32 code4(float s, const Entry4& entry) {
  return (entry.codes ^ (s > entry.threshold ? entry.codes >> 16 : 0u)) & 15u;
}

// Eight codes on their way to a packed word.
struct Codes4 {
  u32 parts[2], above;
};

// Adds the code of element i. They come in the order 6, 7, 4, 5, 2, 3, 0, 1, since the first of a pair
// belongs into the high half of a byte.
INLINE void push4(Codes4& codes, int i, float s, const Entry4& entry) {
  codes.parts[i / 4] = codes.parts[i / 4] * 16u + entry.codes;
  // The sign says whether s is above.
  u32 difference = bits_of(add_rn(entry.threshold, -s));
#ifdef __CUDA_ARCH__
  codes.above = __funnelshift_l(difference, codes.above, 4);
#else
  codes.above = codes.above << 4 | difference >> 28;
#endif
}

INLINE u32 packed4(const Codes4& codes) {
  const u32* parts = codes.parts;
  u32 low = (parts[0] & 0xFFFFu) | parts[1] << 16, flips = parts[0] >> 16 | (parts[1] & 0xFFFF0000u);
  return low ^ (flips & (codes.above >> 3 & 0x11111111u) * 15u);
}
