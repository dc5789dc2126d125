// gemm_4bit for larger batches on Hopper (sm_90a): wgmma with the weights from registers.
//
// Work is shared out as stream_k.cuh says. One warpgroup copies (loader.cuh; activations by TMA, which
// the tensor cores may then read from shared memory with no fence in between), the others multiply, each 64
// weight rows. While the tensor cores multiply one 64-row, 32-element piece of the weight, the warps decode
// the next: a byte's two codes by one look-up (decode_table.cuh), times the float32 scale, rounded once.
#define PIECE_K 32
#define PRODUCTS (PIECE_K / 16)
#define ROW_TILES 1
#define WARPS_N (4 * WARPGROUPS)
#define PRODUCERS 4
#define TILE_M (8 * M_TILES)
#define TILE_N (64 * WARPGROUPS)
#define TABLE_STRIDE 256
#define CONSUMERS (32 * WARPS_N)
#define HOLDERS CONSUMERS
#define THREADS (CONSUMERS + 32 * PRODUCERS)
#define CHUNKS (STEP_K / CHUNK)
// Registers of a thread, out of an SM's 65536: at the start equally many for all, in eights.
#define START_REGISTERS (65536 / THREADS / 8 * 8)
#define PRODUCER_REGISTERS (START_REGISTERS < 56 ? 40 : 56)
#define CONSUMER_REGISTERS_FREE ((START_REGISTERS * THREADS - PRODUCER_REGISTERS * 128) / CONSUMERS / 8 * 8)
#define CONSUMER_REGISTERS (CONSUMER_REGISTERS_FREE > 240 ? 240 : CONSUMER_REGISTERS_FREE)
// Odd in units of 16 bytes, so that the rows of a warp's look-ups lie in different banks.
#define WEIGHT_STRIDE (STEP_K / 2 + 16)
#define ACTIVATIONS_AT 0
#define WEIGHTS_AT (TILE_M * STEP_K * 2)
#define SCALES_AT (WEIGHTS_AT + TILE_N * WEIGHT_STRIDE)
#define STAGE_BYTES ((SCALES_AT + TILE_N * SCALE_STRIDE * 4 + 1023) / 1024 * 1024)
#define MOST_STAGES 8

// A warp's 16 rows are stored so that row g of a fragment is 2 g of the tile, and g + 8 is 2 g + 1: then
// a thread's two results of a column are neighbours.
__device__ __forceinline__ unsigned weight_place(unsigned row) {
  return row / 16 * 16 + row % 2 * 8 + row % 16 / 2;
}

#include "decode_table.cuh"
#include "loader.cuh"
#include "tensor_map.cuh"
#include "wgmma.cuh"

// A scale as the sum of two numbers of the activations' dtype, each twice in its word.
struct Scale {
  u32 high, low;
  INLINE void set(float scale) {
    high = pack_pair(scale, scale);
    float rest = scale - to_float((Element)high);
    low = pack_pair(rest, rest);
  }
};

// Both values times the scale, rounded as if computed from the exact scale (but for 2^-17).
INLINE u32 scaled(u32 pair, Scale scale) {
  u32 low, out;
#if DTYPE == 2
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(low) : "r"(pair), "r"(scale.low));
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(pair), "r"(scale.high), "r"(low));
#else
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(low) : "r"(pair), "r"(scale.low));
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(pair), "r"(scale.high), "r"(low));
#endif
  return out;
}

// The codes of a lane's two rows in a piece.
struct Codes {
  uint4 words[2][PRODUCTS / 2];
  INLINE void load(const u8* rows) {
#pragma unroll
    for (int i = 0; i < PRODUCTS; i++)
      words[i % 2][i / 2] = *reinterpret_cast<const uint4*>(rows + i % 2 * 8 * WEIGHT_STRIDE + i / 2 * 16);
  }
};

// Fragments of 16 rows by PIECE_K elements, where element order is the natural one: for product j,
// lane 4 g + t needs byte t of words 2 j and 2 j + 1 of its two rows.
INLINE void decode_fragments(u32 (&a)[PRODUCTS][4], const Codes& codes, const Scale (&scales)[2],
                             const char* table, u32 lane) {
  u32 select = 0x5504u | (lane % 4) << 4, lane4 = lane * 4;
#pragma unroll
  for (int half = 0; half < 2; half++) {
#pragma unroll
    for (int j = 0; j < PRODUCTS; j += 2) {
      uint4 four = codes.words[half][j / 2];
      u32 words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int i = 0; i < 4; i++) {
        u32 pair = *reinterpret_cast<const u32*>(table + __byte_perm(words[i], lane4, select));
        a[j + i / 2][i % 2 * 2 + half] = scaled(pair, scales[half]);
      }
    }
  }
}

// Rows in pairs: n is even, and out a multiple of 4.
INLINE void store_tile(const Arguments& args, const Accumulators& acc, Step step) {
  u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  i64 row = (i64)step.tile_n * TILE_N + warp * 16 + lane / 4 * 2;
  i64 first_column = (i64)step.tile_m * TILE_M + lane % 4 * 2;
  int columns = row < args.n ? (int)min(args.m - first_column, (i64)TILE_M) : 0;
  float low = 0.0f, high = 0.0f;
  if (args.bias && columns > 0) low = to_float(args.bias[row]), high = to_float(args.bias[row + 1]);
  Element* out = args.out + first_column * args.n + row;
#pragma unroll
  for (int m = 0; m < M_TILES; m++, out += 8 * args.n) {
#pragma unroll
    for (int i = 0; i < 2; i++)
      if (m * 8 + i < columns)
        *reinterpret_cast<u32*>(out + i * args.n) = pack_pair(acc[0][m][i] + low, acc[0][m][i + 2] + high);
  }
}

// The steps of one tile, or of a part of it, have a loop of their own: with any other use of the sums in it, the
// compiler would wait for each step's products.
INLINE void consume(const Arguments& args, const Work& work, Pipeline& pipeline, Stages stages, const char* table) {
  u32 lane = threadIdx.x % 32, warp = __shfl_sync(0xFFFFFFFFu, threadIdx.x / 32, 0);
  Step step(work.begin, work);
  Accumulators acc;
  u32 slot = 0, phase = 0;
  u32 a[2][PRODUCTS][4];
  Scale scales[2];
  Codes codes;
  for (u32 index = work.begin; index < work.end;) {
    u32 count = min(work.k_steps - step.k_step, work.end - index);
#pragma unroll 1
    for (u32 i = 0; i < count; i++) {
      pipeline.full[slot].wait(phase);
      Stage stage = stages.at(slot);
      const u8* weights = stage.weights() + (warp * 16 + lane / 4) * WEIGHT_STRIDE;
      codes.load(weights);
#pragma unroll
      for (int piece = 0; piece < STEP_K / PIECE_K; piece++) {
        int k = piece * PIECE_K;
        if (k % CHUNK == 0) {
          const float* source = stage.scales() + (warp * 16 + lane / 4 * 2) * SCALE_STRIDE + k / CHUNK;
          scales[0].set(source[0]);
          scales[1].set(source[SCALE_STRIDE]);
        }
        decode_fragments(a[piece % 2], codes, scales, table, lane);
        u64 b = descriptor(stage.activations() + k / 64 * (TILE_M * 128) + k % 64 * 2);
        wgmma_fence();
#pragma unroll
        for (int j = 0; j < PRODUCTS; j++) wgmma(acc[0], a[piece % 2][j], b + 2 * j, i > 0 || k > 0 || j > 0);
        wgmma_commit();
        if (k + PIECE_K < STEP_K) codes.load(weights + (k + PIECE_K) / 2);
        wgmma_wait<1>();
        // Now the step before is done with, by this thread.
        if (piece == 0)
          pipeline.empty[slot == 0 ? stages.count - 1 : slot - 1].arrive_if(index + i > work.begin);
      }
      if (++slot == stages.count) slot = 0, phase++;
    }
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < ACCUMULATORS; i++) asm volatile("" : "+f"((&acc[0][0][0])[i])::"memory");
    bool begins = step.k_step == 0, ends = step.k_step + count == work.k_steps;
    bool done = begins && ends || combine(args, acc, work, step.tile, begins);
    if (done) store_tile(args, acc, step);
    index += count;
    step.skip(count, work);
  }
}

// Parameters begin at 528 bytes, a multiple of 16; a TensorMap's address must be one of 64.
struct Padding {
  u64 unused[7];
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
gemm_4bit_wgmma(Arguments args, const __grid_constant__ Padding padding, const __grid_constant__ TensorMap activations) {
  __shared__ Pipeline pipeline;
  extern __shared__ uint4 dynamic[];
  char* table = reinterpret_cast<char*>(dynamic);
  char* first = table + TABLE_BYTES;
  first += (1024 - shared_address(first) % 1024) % 1024;
  Stages stages{first, args.stages, STAGE_BYTES};
  if (threadIdx.x == 0) {
    for (int i = 0; i < MOST_STAGES; i++) {
      pipeline.full[i].init(2 * COPIERS + 1);
      pipeline.empty[i].init(CONSUMERS);
    }
  }
  publish_barriers();
  Work work(args);
  // The same in all lanes, which the compiler must know, or it waits for each product of wgmma.
  if (__shfl_sync(0xFFFFFFFFu, threadIdx.x / 32, 0) >= WARPS_N) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(PRODUCER_REGISTERS));
    if (threadIdx.x == CONSUMERS) fetch_map(activations);
    produce(args, work, pipeline, stages, [&](u32 thread, const Step& step, Stage stage, Barrier& full) {
      if (thread != 0) return;
      expect_bytes(full, TILE_M * STEP_K * 2);
#pragma unroll
      for (int part = 0; part < STEP_K / 64; part++)
        fetch_box(activations, stage.activations() + part * (TILE_M * 128), full, (step.k_step * STEP_K + part * 64) * 2,
                  step.tile_m * TILE_M);
    });
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CONSUMER_REGISTERS));
    fill_table(table, args.codebook, CONSUMERS);
    sync_threads(1, CONSUMERS);
    await_previous();
    consume(args, work, pipeline, stages, table);
  }
}
