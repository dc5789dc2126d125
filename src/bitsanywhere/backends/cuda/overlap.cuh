// A kernel's overlap with the one ahead of it in the stream (jit/launch.py: bind, overlap): it may begin
// before that one has ended, fetch what was there before, and then wait.
#pragma once
#include "convert.cuh"

// Until the kernel ahead has ended and all that it wrote is visible.
INLINE void await_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel may begin once all blocks have come here. After await_previous, so that it may fetch early
// what kernels before this one wrote, though not what this one writes.
INLINE void release_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
