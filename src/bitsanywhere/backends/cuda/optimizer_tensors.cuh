// Many tensors in one launch: their addresses come by value. All tensors one after the other, each
// cut into blocks of 256 elements, make one row of blocks, of which every warp takes some.
#pragma once
#include "optimizer_rules.cuh"

#define BLOCKSIZE 256

// The addresses and the size of one tensor (made by optimizer_tensors.py).
struct Tensor {
  const Element* g;
  Element* p;
  void *state1, *state2;
  float *absmax1, *absmax2;  // of 8-bit states
  i64 count;                 // elements
  u32 begin;                 // blocks of all tensors before it
  u32 whole;                 // full blocks that can be accessed in vectors
};

// The last one only says where the one before it ends, and is never reached.
struct Tensors {
  Tensor list[MOST_TENSORS + 1];
};

// Four consecutive elements from index first on; beyond n they are zero. whole: none is, and x is
// aligned to 16 bytes.
INLINE void load4(const u32* x, i64 first, i64 n, bool whole, float (&values)[4]) {
  if (whole) {
    uint4 words = __ldcs(reinterpret_cast<const uint4*>(x + first));
    values[0] = float_of(words.x), values[1] = float_of(words.y);
    values[2] = float_of(words.z), values[3] = float_of(words.w);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; i++) values[i] = first + i < n ? float_of(x[first + i]) : 0.0f;
}

INLINE void store4(u32* x, i64 first, i64 n, bool whole, const float (&values)[4]) {
  if (whole) {
    __stcs(reinterpret_cast<uint4*>(x + first), make_uint4(bits_of(values[0]), bits_of(values[1]),
                                                           bits_of(values[2]), bits_of(values[3])));
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
    if (first + i < n) x[first + i] = bits_of(values[i]);
}

#if DTYPE != 0
INLINE void load4(const u16* x, i64 first, i64 n, bool whole, float (&values)[4]) {
  u32 words[2];
  if (whole) {
    uint2 both = __ldcs(reinterpret_cast<const uint2*>(x + first));
    words[0] = both.x, words[1] = both.y;
  } else {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      i64 at = first + 2 * i;
      words[i] = (at < n ? x[at] : 0u) | (at + 1 < n ? x[at + 1] : 0u) << 16;
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++) values[i] = to_float((u16)(words[i / 2] >> i % 2 * 16));
}

INLINE void store4(u16* x, i64 first, i64 n, bool whole, const float (&values)[4]) {
  if (whole) {
    __stcs(reinterpret_cast<uint2*>(x + first),
           make_uint2(pack_pair(values[0], values[1]), pack_pair(values[2], values[3])));
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
    if (first + i < n) x[first + i] = from_float(values[i]);
}
#endif
