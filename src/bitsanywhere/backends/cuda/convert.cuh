// Number types and their conversions. No CUDA header is needed, and a host compiler accepts it too
// (there with -ffp-contract=off), so that tests can go through every value.
//
// DTYPE chooses the element type of a kernel's dense tensors: 0 float32, 1 float16, 2 bfloat16.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#ifdef __CUDACC__
#define INLINE __device__ __forceinline__
#else
#include <cmath>
#include <cstring>
#define INLINE inline
#endif

INLINE u32 bits_of(float x) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(x);
#else
  u32 bits;
  std::memcpy(&bits, &x, 4);
  return bits;
#endif
}

INLINE float float_of(u32 bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
#endif
}

// Products and sums that are never contracted into a fused multiply-add.
INLINE float mul_rn(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

INLINE float add_rn(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

INLINE float bf16_to_float(u32 low16) { return float_of(low16 << 16); }

// Round to nearest even; every NaN becomes 0x7FFF.
INLINE u32 float_to_bf16(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  u16 out;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out) : "f"(x));
  return out;
#else
  u32 bits = bits_of(x);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFFu;
  return (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
#endif
}

INLINE float half_to_float(u32 low16) {
#ifdef __CUDA_ARCH__
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"((u16)low16));
  return out;
#else
  u32 sign = (low16 & 0x8000u) << 16, rest = low16 & 0x7FFFu;
  if (rest >= 0x7C00u) return float_of(sign | 0x7F800000u | (rest & 0x3FFu) << 13);
  // Multiplying by 2^112 moves the exponent bias and makes subnormals normal.
  return float_of(sign | bits_of(float_of(rest << 13) * float_of(239u << 23)));
#endif
}

// Round to nearest even; every NaN becomes 0x7FFF.
INLINE u32 float_to_half(float x) {
#ifdef __CUDA_ARCH__
  u16 out;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out) : "f"(x));
  return out;
#else
  u32 bits = bits_of(x), sign = bits >> 16 & 0x8000u, rest = bits & 0x7FFFFFFFu;
  if (rest > 0x7F800000u) return 0x7FFFu;
  if (rest >= 0x47800000u) return sign | 0x7C00u;
  // Below 2^-14 the last bit is worth 2^-24: adding 0.5 rounds there.
  if (rest < 0x38800000u) return sign | (bits_of(float_of(rest) + 0.5f) - 0x3F000000u);
  return sign | ((rest - 0x38000000u + 0xFFFu + (rest >> 13 & 1u)) >> 13);
#endif
}

// Two floats as the two halves of a word, the first in the low half.
INLINE u32 pack_bf16(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  u32 out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
#else
  return float_to_bf16(low) | float_to_bf16(high) << 16;
#endif
}

INLINE u32 pack_half(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  u32 out;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
#else
  return float_to_half(low) | float_to_half(high) << 16;
#endif
}

#ifdef DTYPE
#if DTYPE == 0
typedef u32 Element;
INLINE float to_float(Element x) { return float_of(x); }
INLINE Element from_float(float x) { return bits_of(x); }
#elif DTYPE == 1
typedef u16 Element;
INLINE float to_float(Element x) { return half_to_float(x); }
INLINE Element from_float(float x) { return (u16)float_to_half(x); }
INLINE u32 pack_pair(float low, float high) { return pack_half(low, high); }
#else
typedef u16 Element;
INLINE float to_float(Element x) { return bf16_to_float(x); }
INLINE Element from_float(float x) { return (u16)float_to_bf16(x); }
INLINE u32 pack_pair(float low, float high) { return pack_bf16(low, high); }
#endif
#endif
