// quantize_4bit: packed 4-bit codes and one float32 absmax a block (math: ops/quantize_4bit.py).
//
// A warp takes tiles as blocks.cuh lays them out; the 8 elements of a lane make one 32-bit word of
// packed codes. The look-up table of codec4.cuh lies in shared memory 16 times, one for each pair
// of banks, so that no look-up waits for another.
#include "blocks.cuh"
#include "codec4.cuh"

#define COPIES 16
// On an H100 five blocks hide the latency of memory better than four; elsewhere it costs spills.
#define BLOCKS_A_SM (UNROLL == LEAST_UNROLL && __CUDA_ARCH__ == 900 ? 5 : 1)

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
  // Of bucket 0 if buckets were counted from 0; one multiplication and addition finds an entry.
  u32 origin = (lane % COPIES - FIRST_BUCKET * COPIES) * (u32)sizeof(Entry4);
  i64 tiles = (n + TILE - 1) / TILE;
  i64 warps = (i64)gridDim.x * (blockDim.x / 32);
  for (i64 tile = (i64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; tile < tiles; tile += warps) {
    i64 base = tile * TILE;
    bool whole = aligned && base + TILE <= n;
    Vector vectors[UNROLL];
#pragma unroll
    for (int v = 0; v < UNROLL; v++)
      vectors[v] = load_vector(x, base + v * WARP_VECTOR + lane * 8, n, whole);
    u32 largest[UNROLL];
    block_absmax(vectors, largest);
    store_absmax(largest, absmax, base, n, lane);
#pragma unroll
    for (int v = 0; v < UNROLL; v++) {
      float inverse = reciprocal(float_of(largest[v]));
      u32 word = 0;
#pragma unroll
      for (int i = 0; i < 8; i++) {
        float scaled = clamp4(mul_rn(element(vectors[v], i), inverse));
        // Element 0 belongs into the high half of the lowest byte.
        u32 offset = origin + bucket4(scaled) * (u32)(COPIES * sizeof(Entry4));
        const char* entry = reinterpret_cast<const char*>(table) + offset;
        word += code4(scaled, *reinterpret_cast<const Entry4*>(entry)) << (i * 4 ^ 4);
      }
      i64 first = base + v * WARP_VECTOR + lane * 8;
      if (whole) {
        __stcs(reinterpret_cast<u32*>(packed + first / 2), word);
      } else {
        for (int i = 0; i < 4; i++)
          if (first + 2 * i < n) packed[first / 2 + i] = (u8)(word >> 8 * i);
      }
    }
  }
}
