// Tensor core products of 16 x 8 x 16, and the weight decoding they feed on.
//
// Weights are the 16-row operand and activations the 8-column one, so a batch of up to 8 rows
// wastes nothing.
#pragma once
#include "decode_table.cuh"

// d += a (16 x 16) * b (16 x 8). Lane 4 g + t holds rows g and g + 8 of a and d, column g of b,
// columns 2 t and 2 t + 1 of d; a[0], a[1], b[0] are at k = 2 t and 2 t + 1, the others 8 further.
INLINE void multiply(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
#if DTYPE == 2
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
#endif
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b0));
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

// The fragment register for byte INDEX of a word. lane4: 4 * (lane % TABLE_COPIES).
template <int INDEX>
INLINE u32 decode_byte(const char* table, u32 word, u32 lane4) {
#if TABLE_STRIDE == 256
  u32 place = __byte_perm(word, lane4, 0x5504u | INDEX << 4);
#else
  const int shift = TABLE_STRIDE == 128 ? 7 : 6;
  u32 moved = INDEX * 8 > shift ? word >> (INDEX * 8 - shift) : word << (shift - INDEX * 8);
  u32 place = moved & 255u << shift | lane4;
#endif
  return *reinterpret_cast<const u32*>(table + place);
}
