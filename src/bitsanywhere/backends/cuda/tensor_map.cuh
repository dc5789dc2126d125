// Copies of boxes of a matrix to shared memory by Hopper's copy engine (TMA).
#pragma once
#include "pipeline.cuh"

// The driver's description of a matrix in global memory (cuTensorMapEncodeTiled). It has to lie at a
// multiple of 64, but is not declared so: parameters begin at 0x210 on sm_90, and for a declared
// alignment the compiler would lay them out otherwise than a struct.
struct TensorMap {
  u64 opaque[16];
};

// Fetches the description itself, so that boxes which are fetched later need not wait for it.
INLINE void fetch_map(const TensorMap& map) { asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }

// Arrives at the barrier, whose phase now also waits for so many bytes.
INLINE void expect_bytes(Barrier& barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier.state)), "r"(bytes)
               : "memory");
}

// Fetches the box that begins at a byte of a row; the barrier counts its bytes.
INLINE void fetch_box(const TensorMap& map, char* target, Barrier& barrier, int byte, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          shared_address(target)),
      "l"(&map), "r"(shared_address(&barrier.state)), "r"(byte), "r"(row)
      : "memory");
}

// The same of data that is read once, and so need not stay in the second-level cache.
INLINE void fetch_box_once(const TensorMap& map, char* target, Barrier& barrier, int byte, int row) {
  u64 policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0;" : "=l"(policy));
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(target)),
      "l"(&map), "r"(shared_address(&barrier.state)), "r"(byte), "r"(row), "l"(policy)
      : "memory");
}

// What wgmma wants to know of rows of 128 bytes in shared memory, in groups of 8 swizzled by 128
// bytes: address, 1024 bytes from group to group, the swizzle. 16 elements further along k are 32
// bytes, 2 in the descriptor.
INLINE u64 descriptor(const void* rows) {
  return ((u64)(shared_address(rows) & 0x3FFFFu) >> 4) | (u64)1 << 16 | (u64)64 << 32 | (u64)1 << 62;
}
