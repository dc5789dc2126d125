// gemm_4bit: out = A @ dequantize(B)^T + bias on tensor cores (math: ops/gemm_4bit.py).
//
// Work is shared out as stream_k.cuh says. PRODUCERS warps copy packed weights, scales
// and activations to shared memory, some steps ahead. Each of the other warps multiplies
// ROW_TILES * 16 weight rows and one in WARPS_K parts of every step; these warps wait for data,
// never for each other, until a tile ends.
//
// The order of k: a chunk of CHUNK elements of a weight row lies in one quantization block. Lane t
// of the 4 that share a row takes CHUNK / 4 consecutive elements, and the j-th product of the chunk
// multiplies its elements 4 j ... 4 j + 3. Activations are read in the same order, and a sum does not
// care. So packed bytes feed fragments as they are.
//
// Numerics: the products of a chunk are exact in float32 (codebook values rounded to the
// activations' dtype) and summed by the tensor core; the sum is multiplied by the float32 absmax.
#include "fragments.cuh"

#define TILE_M (8 * M_TILES)
#define TILE_N (16 * ROW_TILES * WARPS_N)
#define CONSUMERS (32 * WARPS_N * WARPS_K)
#define THREADS (CONSUMERS + 32 * PRODUCERS)
#define CHUNKS (STEP_K / CHUNK)
#define WARP_CHUNKS (CHUNKS / WARPS_K)
#define PRODUCTS (CHUNK / 16)
// As many chunks at once as registers allow.
#define MOST_CHUNKS (ACCUMULATORS >= 32 ? 1 : ACCUMULATORS >= 16 || THREADS > 512 ? 2 : 4)
#define CHUNK_UNROLL (WARP_CHUNKS < MOST_CHUNKS ? WARP_CHUNKS : MOST_CHUNKS)
#define WEIGHT_STRIDE (STEP_K / 2 + CHUNK / 2)
#define ACTIVATION_STRIDE (STEP_K * 2 + (CHUNK == 64 ? 16 : 64))
#define WEIGHTS_AT 0
#define SCALES_AT (TILE_N * WEIGHT_STRIDE)
#define ACTIVATIONS_AT (SCALES_AT + TILE_N * SCALE_STRIDE * 4)
#define MOST_STAGES 8
// The threads that hold a tile's sums in the end, those of the first part of WARPS_K.
#define HOLDERS (32 * WARPS_N)

INLINE unsigned weight_place(unsigned row) { return row; }

#include "loader.cuh"

INLINE void load_activations(const Arguments& args, u32 thread, const Step& step, Stage stage) {
  // A thread copies the same 16 bytes of several rows.
  const u32 parts = STEP_K / 8, part = thread % parts;
  i64 first = (i64)step.tile_m * TILE_M, k = (i64)step.k_step * STEP_K + part * 8, stride = args.k * (COPIERS / parts);
  u32 rows = (u32)min(args.m - first, (i64)TILE_M);
  const Element* source = args.activations + (first + thread / parts) * args.k + k;
  char* target = stage.activations() + thread / parts * ACTIVATION_STRIDE + part * 16;
#pragma unroll 4
  for (u32 row = thread / parts; row < rows; row += COPIERS / parts) {
    copy<16>(target, source, k < args.k);
    source += stride;
    target += COPIERS / parts * ACTIVATION_STRIDE;
  }
}

// Called by the holders of the sums.
INLINE void store_tile(const Arguments& args, const Accumulators& acc, Step step) {
  u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int r = 0; r < ROW_TILES; r++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      i64 row = (i64)step.tile_n * TILE_N + (warp * ROW_TILES + r) * 16 + half * 8 + lane / 4;
      if (row >= args.n) continue;
      float bias = args.bias ? to_float(args.bias[row]) : 0.0f;
#pragma unroll
      for (int m = 0; m < M_TILES; m++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
          i64 column = (i64)step.tile_m * TILE_M + m * 8 + lane % 4 * 2 + i;
          if (column < args.m) args.out[column * args.n + row] = from_float(acc[r][m][half * 2 + i] + bias);
        }
      }
    }
  }
}

// acc += the products of one step; acc[r][m][.] holds 16 weight rows by 8 batch rows.
INLINE void multiply_step(Accumulators& acc, Stage stage, const char* table, u32 batch_rows) {
  u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32 % WARPS_N, part = threadIdx.x / HOLDERS;
  u32 group = lane / 4, quarter = lane % 4;
  u32 lane4 = lane % TABLE_COPIES * 4;
  const u8* weights = stage.weights() + (warp * ROW_TILES * 16 + group) * WEIGHT_STRIDE + quarter * (CHUNK / 8) +
                      part * WARP_CHUNKS * (CHUNK / 2);
  const char* activations = stage.activations() + min(group, batch_rows - 1) * ACTIVATION_STRIDE + quarter * (CHUNK / 2) +
                            part * WARP_CHUNKS * CHUNK * 2;
  const float* scales = stage.scales() + (warp * ROW_TILES * 16 + group) * SCALE_STRIDE + part * WARP_CHUNKS;
#pragma unroll(CHUNK_UNROLL)
  for (int chunk = 0; chunk < WARP_CHUNKS; chunk++) {
    uint4 b[M_TILES][PRODUCTS / 2];
#pragma unroll
    for (int m = 0; m < M_TILES; m++)
#pragma unroll
      for (int j = 0; j < PRODUCTS / 2; j++)
        b[m][j] = *reinterpret_cast<const uint4*>(activations + m * 8 * ACTIVATION_STRIDE + chunk * CHUNK * 2 + j * 16);
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++) {
      u32 a[PRODUCTS][4];
      float scale[2];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const u8* source = weights + (r * 16 + half * 8) * WEIGHT_STRIDE + chunk * (CHUNK / 2);
#if CHUNK == 64
        uint2 words = *reinterpret_cast<const uint2*>(source);
        a[0][half] = decode_byte<0>(table, words.x, lane4);
        a[0][half + 2] = decode_byte<1>(table, words.x, lane4);
        a[1][half] = decode_byte<2>(table, words.x, lane4);
        a[1][half + 2] = decode_byte<3>(table, words.x, lane4);
        a[2][half] = decode_byte<0>(table, words.y, lane4);
        a[2][half + 2] = decode_byte<1>(table, words.y, lane4);
        a[3][half] = decode_byte<2>(table, words.y, lane4);
        a[3][half + 2] = decode_byte<3>(table, words.y, lane4);
#else
        u32 word = *reinterpret_cast<const u32*>(source);
        a[0][half] = decode_byte<0>(table, word, lane4);
        a[0][half + 2] = decode_byte<1>(table, word, lane4);
        a[1][half] = decode_byte<2>(table, word, lane4);
        a[1][half + 2] = decode_byte<3>(table, word, lane4);
#endif
        scale[half] = scales[(r * 16 + half * 8) * SCALE_STRIDE + chunk];
      }
#pragma unroll
      for (int m = 0; m < M_TILES; m++) {
        float sums[4] = {};
#pragma unroll
        for (int j = 0; j < PRODUCTS / 2; j++) {
          multiply(sums, a[2 * j], b[m][j].x, b[m][j].y);
          multiply(sums, a[2 * j + 1], b[m][j].z, b[m][j].w);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) acc[r][m][i] += sums[i] * scale[i / 2];
      }
    }
  }
}

// Adds up the parts of the steps; the first HOLDERS threads then hold the block's sums.
INLINE void join_parts(Accumulators& acc, float* sums) {
#if WARPS_K > 1
  float* flat = &acc[0][0][0];
  float* mine = sums + threadIdx.x % HOLDERS;
  int part = threadIdx.x / HOLDERS;
  if (part > 0) {
#pragma unroll
    for (int i = 0; i < ACCUMULATORS; i++) mine[((part - 1) * ACCUMULATORS + i) * HOLDERS] = flat[i];
  }
  sync_threads(1, CONSUMERS);
  if (part == 0) {
#pragma unroll
    for (int i = 0; i < (WARPS_K - 1) * ACCUMULATORS; i++) flat[i % ACCUMULATORS] += mine[i * HOLDERS];
  }
#endif
}

INLINE void consume(const Arguments& args, const Work& work, Pipeline& pipeline, Stages stages, const char* table,
                    u32 batch_rows) {
  Step step(work.begin, work);
  Accumulators acc = {};
  bool begins = step.k_step == 0;
  u32 slot = 0, phase = 0;
  for (u32 index = work.begin; index < work.end; index++) {
    pipeline.full[slot].wait(phase);
    multiply_step(acc, stages.at(slot), table, batch_rows);
    __syncwarp();
    if (threadIdx.x % 32 == 0) pipeline.empty[slot].arrive();
    if (++slot == stages.count) slot = 0, phase++;

    bool ends = step.k_step + 1 == work.k_steps;
    if (ends || index + 1 == work.end) {
      join_parts(acc, reinterpret_cast<float*>(stages.at(stages.count).base));
      bool done = begins && ends || combine(args, acc, work, step.tile, begins);
      if (done && threadIdx.x < HOLDERS) store_tile(args, acc, step);
#if WARPS_K > 1
      // The memory of the parts may be written again.
      sync_threads(1, CONSUMERS);
#endif
#pragma unroll
      for (int i = 0; i < ACCUMULATORS; i++) (&acc[0][0][0])[i] = 0.0f;
      begins = true;
    }
    step.advance(work);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) gemm_4bit(Arguments args) {
  __shared__ Pipeline pipeline;
  extern __shared__ uint4 dynamic[];
  char* table = reinterpret_cast<char*>(dynamic);
  u32 batch_rows = args.m == 1 ? 1 : TILE_M, bytes = ACTIVATIONS_AT + batch_rows * ACTIVATION_STRIDE;
  Stages stages{table + TABLE_BYTES, args.stages, bytes};
  if (threadIdx.x == 0) {
    for (int i = 0; i < MOST_STAGES; i++) {
      pipeline.full[i].init(2 * COPIERS);
      pipeline.empty[i].init(CONSUMERS / 32);
    }
  }
  publish_barriers();
  Work work(args);
  // The same in all lanes, which the compiler must know to keep addresses of shared memory in uniform registers.
  if (__shfl_sync(0xFFFFFFFFu, threadIdx.x / 32, 0) >= CONSUMERS / 32) {
    produce(args, work, pipeline, stages, [&](u32 thread, const Step& step, Stage stage, Barrier&) {
      load_activations(args, thread, step, stage);
    });
  } else {
    fill_table(table, args.codebook, CONSUMERS);
    sync_threads(1, CONSUMERS);
    await_previous();
    consume(args, work, pipeline, stages, table, batch_rows);
  }
}
