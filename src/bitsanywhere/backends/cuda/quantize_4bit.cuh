// quantize_4bit: packed 4-bit codes and one float32 absmax a block (math: ops/quantize_4bit.py).
//
// A warp takes tiles as blocks.cuh lays them out; the 8 elements of a lane make one 32-bit word of
// packed codes. The look-up table of codec4.cuh lies in shared memory 16 times, one for each pair
// of banks, so that no look-up waits for another.
#include "blocks.cuh"
#include "codec4.cuh"

#define COPIES 16
// On an H100 five blocks hide the latency of memory better than four; elsewhere it costs spills.
#define BLOCKS_A_SM (__CUDA_ARCH__ == 900 ? 5 : 1)

// The table's entry for a bucket in shared memory.
INLINE Entry4 look_up(u32 address) {
  Entry4 entry;
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=f"(entry.threshold), "=r"(entry.codes) : "r"(address));
  return entry;
}

// The entry for a scaled value. origin: where that of bucket 0 would lie if buckets were counted from 0.
INLINE Entry4 entry_of(float scaled, u32 origin) {
  return look_up(bucket4(scaled) * (u32)(COPIES * sizeof(Entry4)) + origin);
}

struct Codec {
  const Element* x;
  u8* packed;
  u32 origin;

  INLINE float value(i64 i) const { return to_float(x[i]); }

  INLINE void load(Vector (&vectors)[UNROLL], i64 first) const { load_vectors(vectors, x + first); }

  INLINE void store(Vector& vector, float inverse, i64 first) const {
    replace_unscaled(vector, inverse, 1.0f);
    Codes4 codes{};
#pragma unroll
    for (int j = 7; j >= 0; j--) {
      int i = j ^ 1;
      float scaled = mul_rn(element(vector, i), inverse);
      push4(codes, i, scaled, entry_of(scaled, origin));
    }
    __stcs(reinterpret_cast<u32*>(packed + first / 2), packed4(codes));
  }

  // An odd element, the tensor's last, is followed by the code of zero.
  INLINE void store_some(i64 first, u32 count, float inverse) const {
#pragma unroll 1
    for (u32 i = threadIdx.x % 32 * 2; i < count; i += 64) {
      u32 codes[2];
#pragma unroll
      for (u32 j = 0; j < 2; j++) {
        float s = i + j < count ? scaled(value(first + i + j), inverse, 1.0f) : 0.0f;
        codes[j] = code4(s, entry_of(s, origin));
      }
      packed[(first + i) / 2] = (u8)(codes[0] << 4 | codes[1]);
    }
  }
};

// parts: tiles of a block that is longer than one. format: its place in THRESHOLDS and ORDERS.
extern "C" __global__ void __launch_bounds__(256, BLOCKS_A_SM)
quantize_4bit(const Element* __restrict__ x, u8* __restrict__ packed, float* __restrict__ absmax, i64 n, u32 parts,
              u32 format) {
  __shared__ Entry4 table[BUCKETS * COPIES];
#pragma unroll 1
  for (u32 bucket = threadIdx.x; bucket < BUCKETS; bucket += blockDim.x) {
    Entry4 entry = entry4(bucket, format);
    // Each thread begins with another copy, and so with another bank.
    for (u32 i = 0; i < COPIES; i++) table[bucket * COPIES + (i + bucket) % COPIES] = entry;
  }
  __syncthreads();
  u32 origin = shared_address(table) + (threadIdx.x % COPIES - FIRST_BUCKET * COPIES) * (u32)sizeof(Entry4);
  quantize_tiles(Codec{x, packed, origin}, absmax, n, parts);
}
