// Stages of shared memory, and the warps that fill them.
//
// A stage holds a step's weights (rows WEIGHT_STRIDE bytes apart, in the order that weight_place says,
// which may differ within 16), activations, and scales (float32, CHUNKS a row, rows SCALE_STRIDE apart), each
// at its _AT.
#pragma once
#include "overlap.cuh"
#include "stream_k.cuh"

// Copies of 16 bytes in a step's part of a weight row; rows that the producers copy at once.
#define PIECES (STEP_K / 32)
#define COPIERS (32 * PRODUCERS)
#define PIECE_ROWS (COPIERS / PIECES)
// Scales of a row that one copy takes, and such copies.
#define SCALE_VECTOR (CHUNKS % 4 == 0 ? 4 : CHUNKS % 2 == 0 ? 2 : 1)
#define SCALE_VECTORS (CHUNKS / SCALE_VECTOR)
#define SCALE_COPIES (TILE_N * SCALE_VECTORS)
#define SCALE_TURNS ((SCALE_COPIES + COPIERS - 1) / COPIERS)
// Such that the same scale of 8 rows lies in 8 banks.
#define SCALE_STRIDE (CHUNKS > 4 ? CHUNKS + 4 : CHUNKS)

// Whether weights are marked as read once: where a tile holds all activations, and it measured faster (H200: by 1 to
// 3 % up to 64 batch rows; with more it was up to 1 % slower).
#define READ_ONCE (M_TILES == 1 || (M_TILES <= 8 && __CUDA_ARCH__ == 900))

struct Stage {
  char* base;
  INLINE char* activations() const { return base + ACTIVATIONS_AT; }
  INLINE u8* weights() const { return reinterpret_cast<u8*>(base + WEIGHTS_AT); }
  INLINE float* scales() const { return reinterpret_cast<float*>(base + SCALES_AT); }
};

// All stages; a thread block has `count` of them.
struct Stages {
  char* base;
  u32 count, bytes;
  INLINE Stage at(u32 slot) const { return Stage{base + slot * bytes}; }
};

// Codes and outer scales of a producer thread's part of a step.
struct Nested {
  typedef Unsigned<SCALE_VECTOR>::Type Codes;
  u32 codes[SCALE_TURNS];
  float outer[SCALE_TURNS];
};

// What one producer thread copies. Counts are from its own first row or position on.
struct Loader {
  const u8* weights;
  i64 scale_element;
  u32 rows, width, thread;

  INLINE void begin_tile(const Arguments& args, const Step& step) {
    i64 row = (i64)step.tile_n * TILE_N, k = (i64)step.k_step * STEP_K;
    weights = args.weights + ((row + thread / PIECES) * args.k + k) / 2 + thread % PIECES * 16;
    scale_element = row * args.k + k;
    rows = (u32)min(args.n - row, (i64)TILE_N);
    width = (u32)(args.k - k);
  }

  INLINE void next_step() {
    weights += STEP_K / 2;
    scale_element += STEP_K;
    width -= STEP_K;
  }

  static INLINE void copy_weights(u8* target, const u8* source, bool valid = true) {
    if (READ_ONCE)
      copy_once(target, source, valid);
    else
      copy<16>(target, source, valid);
  }

  INLINE void load_weights(const Arguments& args, Stage stage) const {
    u8* target = stage.weights() + weight_place(thread / PIECES) * WEIGHT_STRIDE + thread % PIECES * 16;
    const u8* source = weights;
    i64 stride = args.k / 2 * PIECE_ROWS;
    if (rows == TILE_N && width >= STEP_K) {
#pragma unroll 8
      for (int i = 0; i < TILE_N / PIECE_ROWS; i++, source += stride, target += PIECE_ROWS * WEIGHT_STRIDE)
        copy_weights(target, source);
      return;
    }
    bool inside = thread % PIECES * 32 < width;
#pragma unroll 1
    for (u32 row = thread / PIECES; row < TILE_N; row += PIECE_ROWS) {
      bool valid = inside && row < rows;
      copy_weights(target, valid ? source : args.weights, valid);
      source += stride;
      target += PIECE_ROWS * WEIGHT_STRIDE;
    }
  }

  static INLINE float* scales_place(Stage stage, u32 i) {
    return stage.scales() + i / SCALE_VECTORS * SCALE_STRIDE + i % SCALE_VECTORS * SCALE_VECTOR;
  }

  // SCALE_VECTOR scales at once: blocks are chunks, rows begin at multiples of so many, and the step is inside
  // the weight along k.
  INLINE i64 first_block(const Arguments& args, u32 i) const {
    u32 row = min(i / SCALE_VECTORS, rows - 1u);
    return (scale_element + row * args.k) / CHUNK + i % SCALE_VECTORS * SCALE_VECTOR;
  }

  INLINE void load_scales(const Arguments& args, Stage stage) const {
#pragma unroll 2
    for (u32 i = thread; i < SCALE_COPIES; i += COPIERS)
      copy<4 * SCALE_VECTOR>(scales_place(stage, i), args.absmax + first_block(args, i));
  }

  // Reads what nested scales are made of; done early, so that the latency passes while the stage is
  // still in use.
  INLINE void fetch_nested(const Arguments& args, Nested& nested) const {
#pragma unroll
    for (u32 i = 0; i < SCALE_TURNS; i++) {
      if (thread + i * COPIERS >= SCALE_COPIES) break;
      i64 block = first_block(args, thread + i * COPIERS);
      nested.codes[i] = *reinterpret_cast<const Nested::Codes*>(args.absmax_8bit + block);
      nested.outer[i] = args.absmax[block / 256];
    }
  }

  INLINE void store_nested(Stage stage, const Nested& nested, const float* scale_codes, float offset) const {
#pragma unroll
    for (u32 i = 0; i < SCALE_TURNS; i++) {
      u32 at = thread + i * COPIERS;
      if (at >= SCALE_COPIES) break;
#pragma unroll
      for (int j = 0; j < SCALE_VECTOR; j++)
        scales_place(stage, at)[j] =
            add_rn(mul_rn(scale_codes[nested.codes[i] >> 8 * j & 255u], nested.outer[i]), offset);
    }
  }

  // Any block size, any K.
  INLINE void load_single(const Arguments& args, Stage stage, const float* scale_codes, float offset) const {
#pragma unroll 1
    for (u32 i = thread; i < TILE_N * CHUNKS; i += COPIERS) {
      u32 row = i / CHUNKS, k = i % CHUNKS * CHUNK;
      float* scale = stage.scales() + row * SCALE_STRIDE + i % CHUNKS;
      bool valid = row < rows && k < width;
      i64 block = valid ? (scale_element + row * args.k + k) >> args.block_shift : 0;
      if (args.absmax_8bit)
        *scale = add_rn(mul_rn(scale_codes[args.absmax_8bit[block]], args.absmax[block / 256]), offset);
      else
        copy<4>(scale, args.absmax + block, valid);
    }
  }
};

struct Pipeline {
  Barrier full[MOST_STAGES], empty[MOST_STAGES];
};

// load_activations(thread, step, stage, full) copies a step's activations, or has its part in it; full is
// the barrier that the producers arrive at afterwards.
template <class LoadActivations>
INLINE void produce(const Arguments& args, const Work& work, Pipeline& pipeline, Stages stages,
                    LoadActivations load_activations) {
  __shared__ float scale_codes[256];
  Step step(work.begin, work);
  await_previous();
  release_next();
  Loader loader;
  loader.thread = threadIdx.x - CONSUMERS;
  loader.begin_tile(args, step);
  bool nested = args.absmax_8bit;
  if (nested) {
    for (u32 i = loader.thread; i < 256; i += COPIERS) scale_codes[i] = args.absmax_code[i];
    sync_threads(2, COPIERS);
  }
  float offset = nested ? *args.absmax_offset : 0.0f;
  u64 misplaced = nested ? reinterpret_cast<u64>(args.absmax_8bit) : reinterpret_cast<u64>(args.absmax) / 4;
  bool regular = (misplaced | args.k / CHUNK) % SCALE_VECTOR == 0 && 1 << args.block_shift == CHUNK;
  u32 slot = 0, phase = 0;
  for (u32 index = work.begin; index < work.end; index++) {
    bool vectors = regular && loader.width >= STEP_K;
    Nested parts;
    if (vectors && nested) loader.fetch_nested(args, parts);
    if (index - work.begin >= stages.count) pipeline.empty[slot].wait(phase - 1);
    Stage stage = stages.at(slot);
    loader.load_weights(args, stage);
    load_activations(loader.thread, step, stage, pipeline.full[slot]);
    if (!vectors)
      loader.load_single(args, stage, scale_codes, offset);
    else if (nested)
      loader.store_nested(stage, parts, scale_codes, offset);
    else
      loader.load_scales(args, stage);
    pipeline.full[slot].arrive_with_copies();
    if (step.advance(work))
      loader.begin_tile(args, step);
    else
      loader.next_step();
    if (++slot == stages.count) slot = 0, phase++;
  }
  wait_copies();
}

