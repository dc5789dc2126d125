// int32 sums of an int8 product, from memory, to the result (see int8_factors.cuh).
#define TILE_M 32
#define TILE_N 128
#define SUM_STRIDE TILE_N
#define THREADS 256

#include "int8_epilogue.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 3) int8_dequant(Arguments args) {
  __shared__ __align__(16) int tile[TILE_M * TILE_N];
  i64 n_tiles = (args.n + TILE_N - 1) / TILE_N;
  i64 first_n = blockIdx.x % n_tiles * TILE_N, first_m = blockIdx.x / n_tiles * TILE_M;
  // Each thread copies what it will read itself.
  u32 tile_n = threadIdx.x % ROW_THREADS * COLUMNS, tile_m = threadIdx.x / ROW_THREADS;
  i64 n = first_n + tile_n;
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    u32 row = tile_m + r * ROW_STEP;
    if (first_m + row >= args.m || n >= args.n) break;
    const int* source = args.sums + (first_m + row) * args.n + n;
    int* target = tile + row * SUM_STRIDE + tile_n;
    if (args.n % COLUMNS == 0) {
      *reinterpret_cast<int4*>(target) = __ldcs(reinterpret_cast<const int4*>(source));
    } else {
      for (int i = 0; i < COLUMNS; i++) target[i] = n + i < args.n ? source[i] : 0;
    }
  }
  __shared__ __align__(16) Factors factors;
  Team team{threadIdx.x, THREADS, 0};
  Columns columns;
  finish_tile(args, first_m, first_n, tile, factors, [&](u32 start) {
    team.sync();
    stage_factors(args, factors, columns, first_m, first_n, start, team);
    team.sync();
  });
}
