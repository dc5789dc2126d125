// Eight neighbouring elements of a row that is to become int8 codes.
#pragma once
#include "int8_math.cuh"

// 8 elements of float32 or of 16 bits.
#define VECTOR_WORDS (DTYPE == 0 ? 8 : 4)

struct Vector {
  u32 words[VECTOR_WORDS];

  INLINE float operator[](int i) const {
#if DTYPE == 0
    return float_of(words[i]);
#else
    return to_float((Element)(words[i / 2] >> (i % 2 * 16)));
#endif
  }
};

// Elements first ... first + 7 of a row whose length is a multiple of eight, zero beyond k.
INLINE Vector load_whole(const Element* row, i64 first, i64 k) {
  Vector v;
#pragma unroll
  for (int i = 0; i < VECTOR_WORDS / 4; i++) {
    uint4 part = first < k ? reinterpret_cast<const uint4*>(row + first)[i] : make_uint4(0, 0, 0, 0);
    v.words[4 * i] = part.x, v.words[4 * i + 1] = part.y;
    v.words[4 * i + 2] = part.z, v.words[4 * i + 3] = part.w;
  }
  return v;
}

// The same for any row. aligned: all vectors begin at multiples of 16 bytes.
INLINE Vector load_vector(const Element* row, i64 first, i64 k, bool aligned) {
  if (aligned && first + 8 <= k) return load_whole(row, first, k);
  Vector v;
#pragma unroll
  for (int i = 0; i < VECTOR_WORDS; i++) {
#if DTYPE == 0
    v.words[i] = first + i < k ? row[first + i] : 0u;
#else
    i64 at = first + 2 * i;
    u32 low = at < k ? row[at] : 0u, high = at + 1 < k ? row[at + 1] : 0u;
    v.words[i] = low | high << 16;
#endif
  }
  return v;
}

// Eight codes, a byte each, of which those at width or beyond are left out. aligned: target's
// address is a multiple of 8 and so is the row's length.
INLINE void store_codes(signed char* target, u32 low, u32 high, i64 width, bool aligned) {
  if (aligned && width >= 8) {
    *reinterpret_cast<uint2*>(target) = make_uint2(low, high);
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; i++)
    if (i < width) target[i] = (signed char)((i < 4 ? low : high) >> (i % 4 * 8));
}
