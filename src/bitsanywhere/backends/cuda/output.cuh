// Storing eight consecutive elements of a dense result.
#pragma once
#include "convert.cuh"

#define WARP_VECTOR 256

// whole: all eight are inside and out + first is aligned to 16 bytes.
INLINE void store8(Element* out, i64 first, i64 n, bool whole, const float (&values)[8]) {
  if (whole) {
    uint4* target = reinterpret_cast<uint4*>(out + first);
#if DTYPE == 0
    const float* f = values;
    __stcs(target, make_uint4(bits_of(f[0]), bits_of(f[1]), bits_of(f[2]), bits_of(f[3])));
    __stcs(target + 1, make_uint4(bits_of(f[4]), bits_of(f[5]), bits_of(f[6]), bits_of(f[7])));
#else
    __stcs(target, make_uint4(pack_pair(values[0], values[1]), pack_pair(values[2], values[3]),
                              pack_pair(values[4], values[5]), pack_pair(values[6], values[7])));
#endif
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; i++)
    if (first + i < n) out[first + i] = from_float(values[i]);
}
