// Hand-over of shared memory stages from producing to consuming threads.
//
// A stage has two barriers: "full" once its data has arrived, "empty" once all consumers are done
// with it. From sm_80 on they are the hardware's mbarriers, on which asynchronous copies count
// themselves; before, counters in shared memory.
#pragma once
#include "threads.cuh"

// Unsigned integers (vectors of them from 8 on) by size.
template <int BYTES>
struct Unsigned;
template <>
struct Unsigned<1> {
  typedef u8 Type;
};
template <>
struct Unsigned<2> {
  typedef u16 Type;
};
template <>
struct Unsigned<4> {
  typedef u32 Type;
};
template <>
struct Unsigned<8> {
  typedef uint2 Type;
};
template <>
struct Unsigned<16> {
  typedef uint4 Type;
};

// Copies 4, 8 or 16 bytes from global to shared memory, or zeros if not valid; source stays unread then.
template <int BYTES>
INLINE void copy(void* target, const void* source, bool valid = true) {
#if __CUDA_ARCH__ >= 800
  if (BYTES == 16)
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(target)),
                 "l"(source), "r"(valid ? 16 : 0)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(target)), "l"(source), "n"(BYTES),
                 "r"(valid ? BYTES : 0)
                 : "memory");
#else
  typedef typename Unsigned<BYTES>::Type T;
  *reinterpret_cast<T*>(target) = valid ? *reinterpret_cast<const T*>(source) : T{};
#endif
}

// As copy<16>, of data that is read once, and so need not stay in the second-level cache.
INLINE void copy_once(void* target, const void* source, bool valid) {
#if __CUDA_ARCH__ >= 800
  u64 policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0;" : "=l"(policy));
  asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, %3;" ::"r"(shared_address(target)),
               "l"(source), "r"(valid ? 16 : 0), "l"(policy)
               : "memory");
#else
  copy<16>(target, source, valid);
#endif
}

// Waits for all of this thread's copies.
INLINE void wait_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Counts arrivals; a phase ends with every `count` of them.
struct Barrier {
  u64 state;
#if __CUDA_ARCH__ < 800
  u32 count;
#endif

  INLINE void init(u32 arrivals) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(&state)), "r"(arrivals) : "memory");
#else
    state = 0;
    count = arrivals;
#endif
  }

  INLINE void arrive() {
#if __CUDA_ARCH__ >= 800
    asm volatile("{ .reg .b64 ignored; mbarrier.arrive.shared.b64 ignored, [%0]; }" ::"r"(shared_address(&state))
                 : "memory");
#else
    __threadfence_block();
    atomicAdd(&state, 1ull);
#endif
  }

  // As arrive, without a branch.
  INLINE void arrive_if(bool condition) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "{ .reg .b64 ignored; .reg .pred p; setp.ne.u32 p, %1, 0; "
        "@p mbarrier.arrive.shared.b64 ignored, [%0]; }" ::"r"(shared_address(&state)),
        "r"((u32)condition)
        : "memory");
#else
    if (condition) arrive();
#endif
  }

  // Arrives twice: now, and when this thread's copies so far have landed.
  INLINE void arrive_with_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(&state)) : "memory");
#else
    arrive();
#endif
    arrive();
  }

  // Waits until phase number `phase` (0, 1, ...) has ended; it must be the current or the last one.
  INLINE void wait(u32 phase) {
#if __CUDA_ARCH__ >= 800
    u32 done = 0;
    while (!done)
      asm volatile(
          "{ .reg .pred p; "
#if __CUDA_ARCH__ >= 900
          "mbarrier.try_wait.parity.shared.b64 p, [%1], %2; "
#else
          "mbarrier.test_wait.parity.shared.b64 p, [%1], %2; "
#endif
          "selp.u32 %0, 1, 0, p; }"
          : "=r"(done)
          : "r"(shared_address(&state)), "r"(phase & 1u)
          : "memory");
#else
    while (*const_cast<volatile u64*>(&state) < (u64)(phase + 1) * count) {
    }
    __threadfence_block();
#endif
  }
};

// Makes barriers that this thread has initialised visible to asynchronous copies.
INLINE void publish_to_copies() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

// And to all threads of the block, which come here together.
INLINE void publish_barriers() {
  publish_to_copies();
  __syncthreads();
}
