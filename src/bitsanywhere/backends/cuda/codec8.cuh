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

INLINE double grid_value(int k) { return (double)k / 32767.5 - 1.0; }

// The first grid point above a midpoint; GRID_POINTS if there is none (or the midpoint is NaN).
INLINE u32 first_point(double midpoint) {
  if (!(midpoint < 1.0)) return GRID_POINTS;
  if (midpoint < -1.0) return 0;
  int k = (int)((midpoint + 1.0) * 32767.5) - 1;
  if (k < 0) k = 0;
  while (k < GRID_POINTS && !(grid_value(k) > midpoint)) k++;
  return (u32)k;
}

// Grid point of s, |s| <= 1 or NaN; below GRID_POINTS in any case.
INLINE u32 grid_point(float s) {
  float scaled = add_rn(mul_rn(add_rn(s, 1.0f), 32767.5f), 0.5f);
#ifdef __CUDA_ARCH__
  // Adding 2^23 while rounding down leaves the floor in the low bits.
  return __float_as_uint(__fadd_rd(fmaxf(scaled, 0.0f), 8388608.0f)) & (GRID_POINTS - 1);
#else
  return scaled > 0.0f ? (u32)scaled & (GRID_POINTS - 1) : 0u;
#endif
}
