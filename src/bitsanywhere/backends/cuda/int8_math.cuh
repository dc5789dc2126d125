// The arithmetic of one element: its int8 code, and its share of a result. A host compiler accepts
// it too, so that tests can compare it with the references.
#pragma once
#include "convert.cuh"
#ifndef __CUDACC__
#include <cmath>
#endif

// What a row's elements are multiplied by to become codes: rounded twice, as torch computes 127 / absmax.
INLINE float int8_inverse(float absmax) {
#ifdef __CUDA_ARCH__
  return mul_rn(__fdiv_rn(1.0f, absmax), 127.0f);
#else
  return mul_rn(1.0f / absmax, 127.0f);
#endif
}

// x * inverse as a code in a byte. NaN becomes 0.
INLINE u32 int8_code(float x, float inverse) {
  float scaled = mul_rn(x, inverse);
#ifdef __CUDA_ARCH__
  int code = max(-127, min(127, __float2int_rn(scaled)));
#else
  int code = scaled != scaled ? 0 : scaled <= -127.0f ? -127 : scaled >= 127.0f ? 127 : (int)std::nearbyint(scaled);
#endif
  return (u32)code & 255u;
}

// Whether int8_code_plain does for all elements of a row that are no larger than its absmax.
INLINE bool int8_is_plain(float inverse) { return inverse > 0.0f && inverse <= 3.402823466e38f; }

// x * inverse as a code in the lowest byte, if its magnitude is below 127.5: the sum's lowest bits are those of
// the nearest integer.
INLINE u32 int8_code_plain(float x, float inverse) { return bits_of(add_rn(mul_rn(x, inverse), 12582912.0f)); }

// An element of a product from the sum of its products of codes (ops/int8_mm_dequant.py).
INLINE float int8_scaled(int sum, float scale_a, float scale_b) {
  return mul_rn(mul_rn((float)sum, mul_rn(scale_a, scale_b)), 1.0f / (127.0f * 127.0f));
}

// And with outlier columns; extra: the sum of their activations times codes of the weight.
INLINE float int8_with_outliers(float scaled, float extra, float scale_b) {
  return add_rn(scaled, mul_rn(extra, mul_rn(scale_b, 1.0f / 127.0f)));
}

// What an activation in an outlier column adds beyond its code, which the sums already hold.
INLINE float int8_residual(float activation, int code, float scale_a) {
  return activation - mul_rn((float)code, mul_rn(scale_a, 1.0f / 127.0f));
}
