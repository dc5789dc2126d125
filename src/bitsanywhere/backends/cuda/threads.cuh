// What threads of a block share.
#pragma once
#include "convert.cuh"

INLINE u32 shared_address(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

// A barrier of some of a block's threads, whole warps; id 0 to 15, of which __syncthreads uses 0.
INLINE void sync_threads(u32 id, u32 threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
