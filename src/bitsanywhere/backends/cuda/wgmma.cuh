// Hopper's asynchronous products of 64 x TILE_M x 16, the 64-row operand from registers.
#pragma once
#include "stream_k.cuh"

#define OUT4(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#if DTYPE == 2
#define OPERANDS "bf16.bf16"
#else
#define OPERANDS "f16.f16"
#endif

// Before the first product after registers of it were written.
INLINE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

INLINE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most PENDING of the newest groups of products are unfinished.
template <int PENDING>
INLINE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// d = a * b, or d += a * b if accumulate. d and a as in stream_k.cuh and fragments.cuh, warp w of the
// four having rows 16 w on; b: a descriptor of TILE_M rows, their 16 elements along k.
INLINE void wgmma(float (&d)[M_TILES][4], const u32 (&a)[4], u64 b, bool accumulate) {
#if M_TILES == 4
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %21, 0; wgmma.mma_async.sync.aligned.m64n32k16.f32." OPERANDS " "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
      "{%16, %17, %18, %19}, %20, p, 1, 1, 0; }"
      : OUT4(0), OUT4(1), OUT4(2), OUT4(3)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate));
#elif M_TILES == 8
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %37, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32." OPERANDS " "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, p, 1, 1, 0; }"
      : OUT4(0), OUT4(1), OUT4(2), OUT4(3), OUT4(4), OUT4(5), OUT4(6), OUT4(7)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate));
#elif M_TILES == 16
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %69, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32." OPERANDS " "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
      "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "
      "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, p, 1, 1, 0; }"
      : OUT4(0), OUT4(1), OUT4(2), OUT4(3), OUT4(4), OUT4(5), OUT4(6), OUT4(7), OUT4(8), OUT4(9),
        OUT4(10), OUT4(11), OUT4(12), OUT4(13), OUT4(14), OUT4(15)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate));
#elif M_TILES == 32
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %133, 0; wgmma.mma_async.sync.aligned.m64n256k16.f32." OPERANDS " "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
      "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "
      "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, "
      "%70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, "
      "%87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, "
      "%104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, "
      "%118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
      "{%128, %129, %130, %131}, %132, p, 1, 1, 0; }"
      : OUT4(0), OUT4(1), OUT4(2), OUT4(3), OUT4(4), OUT4(5), OUT4(6), OUT4(7), OUT4(8), OUT4(9),
        OUT4(10), OUT4(11), OUT4(12), OUT4(13), OUT4(14), OUT4(15), OUT4(16), OUT4(17), OUT4(18),
        OUT4(19), OUT4(20), OUT4(21), OUT4(22), OUT4(23), OUT4(24), OUT4(25), OUT4(26), OUT4(27),
        OUT4(28), OUT4(29), OUT4(30), OUT4(31)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate));
#endif
}
