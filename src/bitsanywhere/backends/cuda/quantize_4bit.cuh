// quantize_4bit: packed 4-bit codes and one float32 absmax a block (math: ops/quantize_4bit.py).
//
// A warp takes tiles as blocks.cuh lays them out; the 8 elements of a lane make one 32-bit word of
// packed codes. The look-up table of codec4.cuh lies in shared memory 16 times, one for each pair
// of banks, so that no look-up waits for another.
#include "blocks.cuh"
#include "codec4.cuh"

INLINE u32 shared_address(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

#define COPIES 16
// On an H100 five blocks hide the latency of memory better than four; elsewhere it costs spills.
#define BLOCKS_A_SM (UNROLL == LEAST_UNROLL && __CUDA_ARCH__ == 900 ? 5 : 1)

// The table's entry for a bucket in shared memory.
INLINE Entry4 look_up(u32 address) {
  Entry4 entry;
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=f"(entry.threshold), "=r"(entry.codes) : "r"(address));
  return entry;
}

// A tile of `count` elements, and what is made of it. origin: where the entry of bucket 0 would lie if
// buckets were counted from 0.
template <bool WHOLE>
INLINE void quantize_tile(const Element* tile, u8* packed, float* absmax, u32 count, u32 lane, u32 origin) {
  Vector vectors[UNROLL];
#pragma unroll
  for (int v = 0; v < UNROLL; v++) vectors[v] = load_vector(tile, v * WARP_VECTOR + lane * 8, count, WHOLE);
  float mine = block_absmax(vectors, lane);
  store_absmax(mine, absmax, count, lane, WHOLE);
  mine = reciprocal(mine);
#pragma unroll
  for (int v = 0; v < UNROLL; v++) {
    float inverse = of_block(mine, v / BLOCK_VECTORS);
    replace_unscaled(vectors[v], inverse, 1.0f);
    Codes4 codes{};
#pragma unroll
    for (int j = 7; j >= 0; j--) {
      int i = j ^ 1;
      float scaled = mul_rn(element(vectors[v], i), inverse);
      push4(codes, i, scaled, look_up(bucket4(scaled) * (u32)(COPIES * sizeof(Entry4)) + origin));
    }
    u32 first = v * WARP_VECTOR + lane * 8, word = packed4(codes);
    if (WHOLE) {
      __stcs(reinterpret_cast<u32*>(packed + first / 2), word);
    } else {
      for (int i = 0; i < 4; i++)
        if (first + 2 * i < count) packed[first / 2 + i] = (u8)(word >> 8 * i);
    }
  }
}

extern "C" __global__ void __launch_bounds__(256, BLOCKS_A_SM)
quantize_4bit(const Element* __restrict__ x, u8* __restrict__ packed, float* __restrict__ absmax, i64 n,
              int aligned) {
  __shared__ Entry4 table[BUCKETS * COPIES];
  for (u32 bucket = threadIdx.x; bucket < BUCKETS; bucket += blockDim.x) {
    Entry4 entry = entry4(bucket);
    // Each thread begins with another copy, and so with another bank.
    for (u32 i = 0; i < COPIES; i++) table[bucket * COPIES + (i + bucket) % COPIES] = entry;
  }
  __syncthreads();

  u32 lane = threadIdx.x % 32;
  u32 origin = shared_address(table) + (lane % COPIES - FIRST_BUCKET * COPIES) * (u32)sizeof(Entry4);
  i64 tiles = (n + TILE - 1) / TILE;
  i64 warps = (i64)gridDim.x * (blockDim.x / 32);
  for (i64 tile = (i64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; tile < tiles; tile += warps) {
    u64 base = (u64)tile * TILE;
    u32 count = (u32)min(n - (i64)base, (i64)TILE);
    float* scales = absmax + base / BLOCKSIZE;
    if (aligned && count == TILE)
      quantize_tile<true>(x + base, packed + base / 2, scales, count, lane, origin);
    else
      quantize_tile<false>(x + base, packed + base / 2, scales, count, lane, origin);
  }
}
