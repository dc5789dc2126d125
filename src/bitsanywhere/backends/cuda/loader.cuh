// Stages of shared memory, and the warps that fill them.
//
// A stage holds a step's weights (rows WEIGHT_STRIDE bytes apart), activations (where
// activation_offset says), and scales (float32, CHUNKS a row).
#pragma once
#include "stream_k.cuh"

// Copies of 16 bytes in a step's part of a weight row; rows that the producers copy at once.
#define PIECES (STEP_K / 32)
#define COPIERS (32 * PRODUCERS)
#define PIECE_ROWS (COPIERS / PIECES)
#define QUADS ((CHUNKS + 3) / 4)
#define SCALE_TURNS ((SCALES + COPIERS - 1) / COPIERS)

struct Stage {
  char* base;
  INLINE char* activations() const { return base; }
  INLINE u8* weights() const { return reinterpret_cast<u8*>(base + ACTIVATION_BYTES); }
  INLINE float* scales() const { return reinterpret_cast<float*>(weights() + TILE_N * WEIGHT_STRIDE); }
};

#if NESTED
// Codes (four in a word if regular) and outer scales of a producer thread's part of a step.
struct Nested {
  u32 codes[SCALE_TURNS];
  float outer[SCALE_TURNS];
};
#endif

// What one producer thread copies. Counts are from its own first row or position on.
struct Loader {
  const u8* weights;
  const Element* activations;
  i64 scale_element, width;
  int rows, batch_rows;
  u32 thread;

  INLINE void begin_tile(const Arguments& args, const Step& step) {
    i64 row = (i64)step.tile_n * TILE_N, batch_row = (i64)step.tile_m * TILE_M, k = (i64)step.k_step * STEP_K;
    weights = args.weights + ((row + thread / PIECES) * args.k + k) / 2 + thread % PIECES * 16;
    activations = args.activations + batch_row * args.k + k;
    scale_element = row * args.k + k;
    rows = (int)min(args.n - row, (i64)TILE_N);
    batch_rows = (int)min(args.m - batch_row, (i64)TILE_M);
    width = args.k - k;
  }

  INLINE void next_step() {
    weights += STEP_K / 2;
    activations += STEP_K;
    scale_element += STEP_K;
    width -= STEP_K;
  }

  INLINE void load_weights(const Arguments& args, Stage stage) const {
    u8* target = stage.weights() + thread / PIECES * WEIGHT_STRIDE + thread % PIECES * 16;
    const u8* source = weights;
    i64 stride = args.k / 2 * PIECE_ROWS;
    if (rows == TILE_N && width >= STEP_K) {
#pragma unroll 8
      for (int i = 0; i < TILE_N / PIECE_ROWS; i++, source += stride, target += PIECE_ROWS * WEIGHT_STRIDE)
        copy16(target, source, true);
      return;
    }
    bool inside = thread % PIECES * 32 < width;
    for (int row = thread / PIECES; row < TILE_N; row += PIECE_ROWS) {
      bool valid = inside && row < rows;
      copy16(target, valid ? source : args.weights, valid);
      source += stride;
      target += PIECE_ROWS * WEIGHT_STRIDE;
    }
  }

  INLINE void load_activations(const Arguments& args, Stage stage) const {
    const u32 parts = STEP_K / 8;
#pragma unroll 4
    for (u32 i = thread; i < batch_rows * parts; i += COPIERS) {
      u32 row = i / parts, part = i % parts;
      bool valid = part * 8 < width;
      const Element* source = valid ? activations + row * args.k + part * 8 : args.activations;
      copy16(stage.activations() + activation_offset(row, part), source, valid);
    }
  }

  // One scale for any block size and K; four where one block is one chunk, rows begin at multiples
  // of four blocks, and the step is inside the weight along k ("regular").
  INLINE i64 scale_block(const Arguments& args, u32 i, bool regular, bool& valid) const {
    u32 row = regular ? i / QUADS : i / CHUNKS;
    u32 k = regular ? i % QUADS * 4 * CHUNK : i % CHUNKS * CHUNK;
    valid = row < rows && k < width;
    return valid ? (scale_element + row * args.k + k) >> args.block_shift : 0;
  }

#if NESTED
  // Reads what the scales are made of; done early, so that the latency passes while the stage is
  // still in use.
  INLINE void fetch_scales(const Arguments& args, Nested& nested, bool regular) const {
    u32 count = regular ? SCALES / 4 : SCALES;
#pragma unroll
    for (u32 i = 0; i < SCALE_TURNS; i++) {
      bool valid;
      if (thread + i * COPIERS >= count) break;
      i64 block = scale_block(args, thread + i * COPIERS, regular, valid);
      nested.codes[i] =
          regular ? *reinterpret_cast<const u32*>(args.absmax_8bit + block) : args.absmax_8bit[block];
      nested.outer[i] = args.absmax[block / 256];
    }
  }

  INLINE void store_scales(Stage stage, const Nested& nested, const float* scale_codes, float offset,
                           bool regular) const {
    u32 count = regular ? SCALES / 4 : SCALES;
#pragma unroll
    for (u32 i = 0; i < SCALE_TURNS; i++) {
      u32 at = thread + i * COPIERS;
      if (at >= count) break;
      float scales[4];
#pragma unroll
      for (int j = 0; j < 4; j++)
        scales[j] = add_rn(mul_rn(scale_codes[nested.codes[i] >> 8 * j & 255u], nested.outer[i]), offset);
      if (regular)
        reinterpret_cast<float4*>(stage.scales())[at] = make_float4(scales[0], scales[1], scales[2], scales[3]);
      else
        stage.scales()[at] = scales[0];
    }
  }
#else
  INLINE void load_scales(const Arguments& args, Stage stage, bool regular) const {
    u32 count = regular ? SCALES / 4 : SCALES;
#pragma unroll 4
    for (u32 i = thread; i < count; i += COPIERS) {
      bool valid;
      i64 block = scale_block(args, i, regular, valid);
      if (regular)
        copy16(stage.scales() + i * 4, args.absmax + block, valid);
      else
        copy4(stage.scales() + i, args.absmax + block, valid);
    }
  }
#endif
};

struct Pipeline {
  Barrier full[STAGES], empty[STAGES];
};

INLINE void produce(const Arguments& args, const Work& work, Pipeline& pipeline, char* stages,
                    const float* scale_codes) {
  Step step(work.begin, work);
  Loader loader;
  loader.thread = threadIdx.x - CONSUMERS;
  loader.begin_tile(args, step);
#if NESTED
  float offset = *args.absmax_offset;
#endif
  bool regular = CHUNKS % 4 == 0 && args.k % (4 * CHUNK) == 0 && 1 << args.block_shift == CHUNK;
#if NESTED
  regular = regular && reinterpret_cast<u64>(args.absmax_8bit) % 4 == 0;
#else
  regular = regular && reinterpret_cast<u64>(args.absmax) % 16 == 0;
#endif
  u32 slot = 0, phase = 0;
#ifdef COPY_LAG
  u32 done_slot = 0;
#endif
  for (u32 index = work.begin; index < work.end; index++) {
    bool fours = regular && loader.width >= STEP_K;
#if NESTED
    Nested nested;
    loader.fetch_scales(args, nested, fours);
#endif
    if (index - work.begin >= STAGES) pipeline.empty[slot].wait(phase - 1);
    Stage stage{stages + slot * STAGE_BYTES};
    loader.load_weights(args, stage);
    loader.load_activations(args, stage);
#if NESTED
    loader.store_scales(stage, nested, scale_codes, offset, fours);
#else
    loader.load_scales(args, stage, fours);
#endif
#ifdef COPY_LAG
    // wgmma reads by another path, so copies are waited for and fenced before they are announced.
    commit_copies();
    if (index - work.begin >= COPY_LAG) {
      wait_copies<COPY_LAG>();
      fence_async_proxy();
      pipeline.full[done_slot].arrive();
      if (++done_slot == STAGES) done_slot = 0;
    }
#else
    pipeline.full[slot].arrive_with_copies();
#endif
    if (step.advance(work))
      loader.begin_tile(args, step);
    else
      loader.next_step();
    if (++slot == STAGES) slot = 0, phase++;
  }
  wait_copies<0>();
#ifdef COPY_LAG
  fence_async_proxy();
  for (u32 i = 0; i < min(COPY_LAG, work.end - work.begin); i++) {
    pipeline.full[done_slot].arrive();
    if (++done_slot == STAGES) done_slot = 0;
  }
#endif
}

