// gemm_4bit: out = A @ dequantize(B)^T + bias on tensor cores (math: ops/gemm_4bit.py).
//
// Work: out^T is cut into tiles of TILE_N weight rows by TILE_M batch rows, and a tile into steps
// of STEP_K elements of the inner dimension. All steps of all tiles, in that order, are dealt out
// evenly to the thread blocks ("stream-K"), so every SM has the same share whatever the shape. A
// tile that several blocks share is summed, in a fixed order, by whichever of them is last.
//
// Inside: each warp owns ROW_TILES * 16 weight rows. Packed weights, scales and activations of the
// next STAGES - 1 steps are on their way to shared memory while one step is multiplied.
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
#define TILE_N (16 * ROW_TILES * WARPS)
#define THREADS (32 * WARPS)
#define CHUNKS (STEP_K / CHUNK)
#define PRODUCTS (CHUNK / 16)
#define WEIGHT_STRIDE (STEP_K / 2 + CHUNK / 2)
#define ACTIVATION_STRIDE (STEP_K * 2 + (CHUNK == 64 ? 16 : 64))
#define SCALES (TILE_N * CHUNKS)
#define STAGE_BYTES (TILE_N * WEIGHT_STRIDE + TILE_M * ACTIVATION_STRIDE + SCALES * 4)
#define SCALES_A_THREAD ((SCALES + THREADS - 1) / THREADS)
#define ACCUMULATORS (ROW_TILES * M_TILES * 4)

struct Arguments {
  const Element* activations;
  const u8* weights;
  const float* absmax;
  const u8* absmax_8bit;
  const float* absmax_code;
  const float* absmax_offset;
  const float* codebook;
  const Element* bias;
  Element* out;
  float* partial;
  u32* arrivals;
  i64 m, n, k;
};

#ifdef VALUES
__constant__ float fixed_values[16] = {VALUES};
#endif

// Where a step lies: tile and position along k.
struct Step {
  u32 tile_n, tile_m, k_step;
};

INLINE Step step_at(i64 index, u32 k_steps, u32 m_tiles) {
  i64 tile = index / k_steps;
  return {(u32)(tile / m_tiles), (u32)(tile % m_tiles), (u32)(index % k_steps)};
}

INLINE void advance(Step& step, u32 k_steps, u32 m_tiles) {
  if (++step.k_step < k_steps) return;
  step.k_step = 0;
  if (++step.tile_m < m_tiles) return;
  step.tile_m = 0;
  step.tile_n++;
}

struct Stage {
  char* base;
  INLINE u8* weights() const { return reinterpret_cast<u8*>(base); }
  INLINE char* activations() const { return base + TILE_N * WEIGHT_STRIDE; }
  INLINE float* scales() const { return reinterpret_cast<float*>(activations() + TILE_M * ACTIVATION_STRIDE); }
};

// Nested scales on their way: their codes and outer scales, read one step before they are stored.
struct PendingScales {
  u32 codes[SCALES_A_THREAD];
  float outer[SCALES_A_THREAD];
  Stage stage;
};

INLINE void store_pending(const PendingScales& pending, const float* scale_codes, float offset) {
#pragma unroll
  for (int i = 0; i < SCALES_A_THREAD; i++) {
    u32 index = threadIdx.x + i * THREADS;
    if (SCALES % THREADS == 0 || index < SCALES)
      pending.stage.scales()[index] = add_rn(mul_rn(scale_codes[pending.codes[i]], pending.outer[i]), offset);
  }
}

INLINE void load_step(const Arguments& args, Stage stage, Step step, PendingScales& pending) {
  i64 first_row = (i64)step.tile_n * TILE_N, first_m = (i64)step.tile_m * TILE_M;
  i64 first_k = (i64)step.k_step * STEP_K;
  const u32 pieces = STEP_K / 32;
#pragma unroll
  for (u32 i = threadIdx.x; i < TILE_N * pieces; i += THREADS) {
    u32 row = i / pieces, piece = i % pieces;
    bool valid = first_row + row < args.n && first_k + piece * 32 < args.k;
    const u8* source = args.weights + ((first_row + row) * args.k + first_k + piece * 32) / 2;
    copy16(stage.weights() + row * WEIGHT_STRIDE + piece * 16, valid ? source : args.weights, valid);
  }
  u32 rows_m = (u32)min(args.m - first_m, (i64)TILE_M);
  const u32 parts = STEP_K / 8;
  for (u32 i = threadIdx.x; i < rows_m * parts; i += THREADS) {
    u32 row = i / parts, part = i % parts;
    bool valid = first_k + part * 8 < args.k;
    const Element* source = args.activations + (first_m + row) * args.k + first_k + part * 8;
    copy16(stage.activations() + row * ACTIVATION_STRIDE + part * 16, valid ? source : args.activations, valid);
  }
  pending.stage = stage;
#pragma unroll
  for (int i = 0; i < SCALES_A_THREAD; i++) {
    u32 index = threadIdx.x + i * THREADS;
    if (SCALES % THREADS && index >= SCALES) break;
    u32 row = index / CHUNKS, chunk = index % CHUNKS;
    i64 k = first_k + chunk * CHUNK;
    bool valid = first_row + row < args.n && k < args.k;
    i64 block = valid ? ((first_row + row) * args.k + k) / BLOCKSIZE : 0;
#if NESTED
    pending.codes[i] = args.absmax_8bit[block];
    pending.outer[i] = args.absmax[block / 256];
#else
    copy4(stage.scales() + index, args.absmax + block, valid);
#endif
  }
}

// acc += the products of one step; acc[r][m][.] holds 16 weight rows by 8 batch rows.
INLINE void multiply_step(float (&acc)[ROW_TILES][M_TILES][4], Stage stage, const u32* table) {
  u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, quarter = lane % 4;
  u32 lane4 = lane % TABLE_COPIES * 4;
  const u8* weights = stage.weights() + (warp * ROW_TILES * 16 + group) * WEIGHT_STRIDE + quarter * (CHUNK / 8);
  const char* activations = stage.activations() + group * ACTIVATION_STRIDE + quarter * (CHUNK / 2);
  const float* scales = stage.scales() + (warp * ROW_TILES * 16 + group) * CHUNKS;
#pragma unroll
  for (int chunk = 0; chunk < CHUNKS; chunk++) {
    u32 a[ROW_TILES][PRODUCTS][4];
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const u8* source = weights + (r * 16 + half * 8) * WEIGHT_STRIDE + chunk * (CHUNK / 2);
#if CHUNK == 64
        uint2 words = *reinterpret_cast<const uint2*>(source);
        a[r][0][half] = decode_byte<0>(table, words.x, lane4);
        a[r][0][half + 2] = decode_byte<1>(table, words.x, lane4);
        a[r][1][half] = decode_byte<2>(table, words.x, lane4);
        a[r][1][half + 2] = decode_byte<3>(table, words.x, lane4);
        a[r][2][half] = decode_byte<0>(table, words.y, lane4);
        a[r][2][half + 2] = decode_byte<1>(table, words.y, lane4);
        a[r][3][half] = decode_byte<2>(table, words.y, lane4);
        a[r][3][half + 2] = decode_byte<3>(table, words.y, lane4);
#else
        u32 word = *reinterpret_cast<const u32*>(source);
        a[r][0][half] = decode_byte<0>(table, word, lane4);
        a[r][0][half + 2] = decode_byte<1>(table, word, lane4);
        a[r][1][half] = decode_byte<2>(table, word, lane4);
        a[r][1][half + 2] = decode_byte<3>(table, word, lane4);
#endif
      }
    }
    float scale[ROW_TILES][2];
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++) {
      scale[r][0] = scales[r * 16 * CHUNKS + chunk];
      scale[r][1] = scales[(r * 16 + 8) * CHUNKS + chunk];
    }
#pragma unroll
    for (int m = 0; m < M_TILES; m++) {
      float sums[ROW_TILES][4] = {};
#pragma unroll
      for (int j = 0; j < PRODUCTS; j += 2) {
        uint4 b = *reinterpret_cast<const uint4*>(activations + m * 8 * ACTIVATION_STRIDE + chunk * CHUNK * 2 + j * 8);
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++) {
          multiply(sums[r], a[r][j], b.x, b.y);
          multiply(sums[r], a[r][j + 1], b.z, b.w);
        }
      }
#pragma unroll
      for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
        for (int i = 0; i < 4; i++) acc[r][m][i] += sums[r][i] * scale[r][i / 2];
    }
  }
}

INLINE void store_tile(const Arguments& args, const float (&acc)[ROW_TILES][M_TILES][4], Step step) {
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

// The thread block whose share holds a step, shares beginning at floor(block * total / blocks).
INLINE u32 owner(i64 index, i64 total) { return (u32)(((index + 1) * gridDim.x - 1) / total); }

// Adds this block's part of a shared tile; true in the one block that then holds the whole sum. A
// block has at most one part that begins inside a tile and one that begins with it.
INLINE bool combine(const Arguments& args, float (&acc)[ROW_TILES][M_TILES][4], i64 tile, u32 k_steps,
                    i64 total, bool begins) {
  __shared__ u32 is_last;
  float* flat = &acc[0][0][0];
  float* mine = args.partial + (2 * (i64)blockIdx.x + begins) * ACCUMULATORS * THREADS + threadIdx.x;
#pragma unroll
  for (int i = 0; i < ACCUMULATORS; i++) mine[i * THREADS] = flat[i];
  u32 first = owner(tile * k_steps, total), last = owner((tile + 1) * k_steps - 1, total);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    is_last = atomicAdd(args.arrivals + first, 1u) == last - first;
    if (is_last) args.arrivals[first] = 0;
  }
  __syncthreads();
  if (!is_last) return false;
  __threadfence();
#pragma unroll
  for (int i = 0; i < ACCUMULATORS; i++) flat[i] = 0.0f;
  for (u32 block = first; block <= last; block++) {
    const float* part = args.partial + (2 * (i64)block + (block == first)) * ACCUMULATORS * THREADS + threadIdx.x;
#pragma unroll
    for (int i = 0; i < ACCUMULATORS; i++) flat[i] += __ldcg(part + i * THREADS);
  }
  return true;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_A_SM) gemm_4bit(Arguments args) {
  __shared__ __align__(16) u32 table[TABLE_WORDS];
#if NESTED
  __shared__ float scale_codes[256];
#endif
  extern __shared__ uint4 stages[];
  u32 k_steps = (u32)((args.k + STEP_K - 1) / STEP_K), m_tiles = (u32)((args.m + TILE_M - 1) / TILE_M);
  i64 total = (args.n + TILE_N - 1) / TILE_N * m_tiles * k_steps;
  i64 begin = blockIdx.x * total / gridDim.x, end = (blockIdx.x + 1) * total / gridDim.x;
  auto stage_at = [&](u32 i) { return Stage{reinterpret_cast<char*>(stages) + i * STAGE_BYTES}; };

  float offset = 0.0f;
  PendingScales pending;
#if NESTED
  for (u32 i = threadIdx.x; i < 256; i += THREADS) scale_codes[i] = args.absmax_code[i];
  offset = *args.absmax_offset;
  __syncthreads();
#endif
  Step loading = step_at(begin, k_steps, m_tiles), step = loading;
  i64 load_index = begin;
  for (int i = 0; i < STAGES - 1; i++) {
    if (load_index < end) {
      load_step(args, stage_at(i), loading, pending);
#if NESTED
      store_pending(pending, scale_codes, offset);
#endif
      advance(loading, k_steps, m_tiles);
    }
    load_index++;
    commit_copies();
  }
#ifdef VALUES
  fill_pair_table(table, fixed_values);
#else
  fill_pair_table(table, args.codebook);
#endif

  float acc[ROW_TILES][M_TILES][4] = {};
  u32 stage = 0, load_stage = STAGES - 1;
  bool is_pending = false, begins = step.k_step == 0;
  for (i64 index = begin; index < end; index++) {
    wait_copies<STAGES - 2>();
    __syncthreads();
#if NESTED
    if (is_pending) store_pending(pending, scale_codes, offset);
#endif
    is_pending = load_index < end;
    if (is_pending) {
      load_step(args, stage_at(load_stage), loading, pending);
      advance(loading, k_steps, m_tiles);
    }
    load_index++;
    commit_copies();
    multiply_step(acc, stage_at(stage), table);
    stage = stage + 1 == STAGES ? 0 : stage + 1;
    load_stage = load_stage + 1 == STAGES ? 0 : load_stage + 1;

    bool ends = step.k_step + 1 == k_steps;
    if (ends || index + 1 == end) {
      bool complete = begins && ends;
      i64 tile = (i64)step.tile_n * m_tiles + step.tile_m;
      if (complete || combine(args, acc, tile, k_steps, total, begins)) store_tile(args, acc, step);
#pragma unroll
      for (int i = 0; i < ACCUMULATORS; i++) (&acc[0][0][0])[i] = 0.0f;
      begins = true;
    }
    advance(step, k_steps, m_tiles);
  }
}
