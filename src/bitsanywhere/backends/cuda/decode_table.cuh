// The table by which two 4-bit codes, a byte, become two values of the activations' dtype, a register.
//
// It has an entry for each of the 256 bytes. In shared memory an entry lies there once for each of the 32
// banks (or 16 times, for pairs of lanes), so that look-ups of different lanes never meet in a bank.
// Entries are TABLE_STRIDE bytes apart; at 256, of which half is used, one permutation of bytes makes
// the address of a look-up.
#pragma once
#include "convert.cuh"

#define TABLE_BYTES (256 * TABLE_STRIDE)
#define TABLE_COPIES (TABLE_STRIDE < 128 ? TABLE_STRIDE / 4 : 32)

// Fills the table from the 16 values, by the first `threads` threads: the code in a byte's high half
// is the earlier element. A lane reads one value, and gets the others from its neighbours: reading all of them
// would take longer than the first weights need to arrive.
INLINE void fill_table(char* table, const float* __restrict__ values, u32 threads) {
  const u32 parts = TABLE_COPIES / 4;
  float value = __ldg(values + threadIdx.x % 16);
#pragma unroll 4
  for (u32 i = threadIdx.x; i < 256 * parts; i += threads) {
    u32 byte = i / parts;
    u32 pair = pack_pair(__shfl_sync(0xFFFFFFFFu, value, byte >> 4), __shfl_sync(0xFFFFFFFFu, value, byte & 15));
    *reinterpret_cast<uint4*>(table + byte * TABLE_STRIDE + i % parts * 16) = make_uint4(pair, pair, pair, pair);
  }
}
