// int8 products for few rows of a: out = a @ b^T from int8 codes, on int8 tensor cores, b streaming.
//
// Weights (b) are the 16-row operand and activations (a) the 8-column one. A thread block owns
// TILE_N weight rows and TILE_M activation rows; its WARPS warps share out k, UNROLL chunks of 64
// at a time, and add up their sums in shared memory, which in integers is exact in any order.
// Weights are not staged: lane t of the four that share a row reads 16 consecutive codes of the chunk,
// the same of both operands, and a sum does not care for the order of k. So each load is 16 bytes, and
// the next UNROLL chunks of weights are on their way while the present ones are multiplied. One more
// warp fetches outlier columns meanwhile.
#include "convert.cuh"

#define TILE_M (8 * M_TILES)
#define TILE_N (16 * ROW_TILES)
#define THREADS (32 * WARPS)
#define CHUNK 64
#define SUM_STRIDE TILE_N

#include "int8_epilogue.cuh"

// d += a (16 x 32) * b (32 x 8). Lane 4 g + t holds rows g (d[0], d[1]) and g + 8, columns 2 t and 2 t + 1
// of d; of a the rows g (a[0], a[2]) and g + 8, of b column g, each register being four codes.
INLINE void multiply(int (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
  asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};" : "+r"(d[0]), "+r"(d[1]) : "r"(a0), "r"(b0));
  asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};" : "+r"(d[2]), "+r"(d[3]) : "r"(a1), "r"(b0));
  asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};" : "+r"(d[0]), "+r"(d[1]) : "r"(a2), "r"(b1));
  asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};" : "+r"(d[2]), "+r"(d[3]) : "r"(a3), "r"(b1));
#endif
}

// The 16 codes of a row from position at on, zero beyond k. streamed: read once only.
template <bool STREAMED>
INLINE uint4 load_codes(const i8* row, i64 at, i64 k) {
#if ALIGNED
  uint4 codes = make_uint4(0, 0, 0, 0);
  if (at < k) {
    if (STREAMED)
      asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                   : "=r"(codes.x), "=r"(codes.y), "=r"(codes.z), "=r"(codes.w)
                   : "l"(row + at));
    else
      codes = __ldg(reinterpret_cast<const uint4*>(row + at));
  }
  return codes;
#else
  u32 words[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < 16; i++)
    if (at + i < k) words[i / 4] |= (u32)(u8)row[at + i] << (i % 4 * 8);
  return make_uint4(words[0], words[1], words[2], words[3]);
#endif
}

typedef uint4 Weights[UNROLL][ROW_TILES][2];

INLINE void load_weights(Weights& weights, const i8* const (&rows)[ROW_TILES][2], i64 at, i64 k) {
#pragma unroll
  for (int u = 0; u < UNROLL; u++)
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
      for (int half = 0; half < 2; half++) weights[u][r][half] = load_codes<true>(rows[r][half], at + u * CHUNK, k);
}

// The multiplying threads and the warp for outliers.
#define ALL_THREADS (THREADS + (RAW ? 0 : 32))

extern "C" __global__ void __launch_bounds__(ALL_THREADS, BLOCKS_A_SM) int8_gemm(Arguments args) {
  __shared__ __align__(16) int sums[TILE_M * TILE_N];
  for (u32 i = threadIdx.x; i < TILE_M * TILE_N; i += ALL_THREADS) sums[i] = 0;
  i64 m_tiles = (args.m + TILE_M - 1) / TILE_M;
  i64 first_n = blockIdx.x / m_tiles * TILE_N, first_m = blockIdx.x % m_tiles * TILE_M;
  u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, quarter = lane % 4;
#if !RAW
  __shared__ __align__(16) Outliers outliers;
  if (warp == WARPS) {
    stage_outliers(args, outliers, first_m, first_n, 0, Team{lane, 32, 1});
    __syncthreads();
    __syncthreads();
    return;
  }
#endif

  // Rows beyond the end are read as the last one, and their sums dropped.
  const i8* b_rows[ROW_TILES][2];
#pragma unroll
  for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
    for (int half = 0; half < 2; half++)
      b_rows[r][half] = args.b + min(first_n + r * 16 + half * 8 + group, args.n - 1) * args.k;
  const i8* a_rows[M_TILES];
#pragma unroll
  for (int m = 0; m < M_TILES; m++) a_rows[m] = args.a + min(first_m + m * 8 + group, args.m - 1) * args.stride_a;

  int acc[ROW_TILES][M_TILES][4] = {};
  Weights weights, next;
  const i64 step = WARPS * UNROLL * CHUNK;
  i64 at = warp * (UNROLL * CHUNK) + quarter * 16;
  load_weights(weights, b_rows, at, args.k);
#pragma unroll 1
  for (i64 start = warp * (UNROLL * CHUNK); start < args.k; start += step, at += step) {
    load_weights(next, b_rows, at + step, args.k);
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
#pragma unroll
      for (int m = 0; m < M_TILES; m++) {
        uint4 x = load_codes<false>(a_rows[m], at + u * CHUNK, args.k);
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++) {
          uint4 low = weights[u][r][0], high = weights[u][r][1];
          multiply(acc[r][m], low.x, high.x, low.y, high.y, x.x, x.y);
          multiply(acc[r][m], low.z, high.z, low.w, high.w, x.z, x.w);
        }
      }
    }
#pragma unroll
    for (int u = 0; u < UNROLL; u++)
#pragma unroll
      for (int r = 0; r < ROW_TILES; r++) weights[u][r][0] = next[u][r][0], weights[u][r][1] = next[u][r][1];
  }

  __syncthreads();
#pragma unroll
  for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
    for (int m = 0; m < M_TILES; m++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        atomicAdd(sums + (m * 8 + quarter * 2 + i % 2) * TILE_N + r * 16 + i / 2 * 8 + group, acc[r][m][i]);
  __syncthreads();
#if RAW
  store_sums(args, first_m, first_n, sums);
#else
  finish_tile(args, first_m, first_n, sums, outliers, Team{threadIdx.x, THREADS, 1});
#endif
}
