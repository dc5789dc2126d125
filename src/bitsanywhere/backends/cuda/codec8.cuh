// A scaled value to its 8-bit code, for any ascending 256-entry codebook.
//
// As formats/base.py has it: k = floor((s + 1) * 32767.5 + 0.5), NaN becoming 0, and the code is
// that nearest to k / 32767.5 - 1, a tie going to the lower one, but an exact zero keeps the code
// nearest to zero. first_point says from which k on a code or a higher one is taken, so that a
// table of all 65536 grid points can be filled quickly.
#pragma once
#include "convert.cuh"

#define GRID_POINTS 65536

INLINE float absolute(float x) { return float_of(bits_of(x) & 0x7FFFFFFFu); }

// The midpoint of codes i and i + 1, exactly.
INLINE double midpoint8(const float* code, u32 i) { return ((double)code[i] + (double)code[i + 1]) / 2.0; }

INLINE double fused(double a, double b, double c) {
#ifdef __CUDA_ARCH__
  return __fma_rn(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}

// k / 32767.5 - 1. The quotient is a product, mended by its remainder: for every k the same as by a
// division, which compiles to a long routine.
INLINE double grid_value(int k) {
  double inverse = 1.0 / 32767.5, quotient = (double)k * inverse;
  return fused(fused(-quotient, 32767.5, (double)k), inverse, quotient) - 1.0;
}

// The first grid point above a midpoint; GRID_POINTS if there is none (or the midpoint is NaN).
INLINE u32 first_point(double midpoint) {
  if (!(midpoint < 1.0)) return GRID_POINTS;
  if (midpoint < -1.0) return 0;
  int k = (int)((midpoint + 1.0) * 32767.5) - 1;
  if (k < 0) k = 0;
  while (k < GRID_POINTS && !(grid_value(k) > midpoint)) k++;
  return (u32)k;
}

// Grid point of s, |s| <= 1 but for one rounding, and not NaN. Of no sum s + 1 does it matter that the
// product is not rounded before 0.5 is added.
INLINE u32 grid_point(float s) {
#ifdef __CUDA_ARCH__
  // The smallest floats count whole numbers in their bits.
  return bits_of(__fmul_rz(__fmaf_rn(add_rn(s, 1.0f), 32767.5f, 0.5f), float_of(1u)));
#else
  return (u32)std::fma(s + 1.0f, 32767.5f, 0.5f);
#endif
}
