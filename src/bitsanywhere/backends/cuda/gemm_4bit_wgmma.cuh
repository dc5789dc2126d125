// gemm_4bit for larger batches on Hopper (sm_90a): wgmma with the weights from registers.
//
// Work is shared out as stream_k.cuh says. One warpgroup copies (loader.cuh), the others multiply,
// each ROW_TILES times 64 weight rows; the tensor cores read the activations from shared memory
// themselves. While they multiply one 64-row, 64-element piece of the weight, the warps decode the
// next: a byte's two codes by one look-up of their values as a pair of float16, which hold the
// codebook closer than bfloat16; times the float32 scale; rounded to the activations' dtype.
#define CHUNK_K 64
#define WARPS_N (4 * WARPGROUPS)
#define PRODUCERS 4
#define TILE_M (8 * M_TILES)
#define TILE_N (64 * ROW_TILES * WARPGROUPS)
#define CONSUMERS (32 * WARPS_N)
#define HOLDERS CONSUMERS
#define THREADS (CONSUMERS + 32 * PRODUCERS)
#define CHUNKS (STEP_K / CHUNK)
// Registers of a thread, out of an SM's 65536: at the start equally many for all, in eights.
#define START_REGISTERS (65536 / THREADS / 8 * 8)
#define PRODUCER_REGISTERS (START_REGISTERS < 56 ? 40 : 56)
#define CONSUMER_REGISTERS_FREE ((START_REGISTERS * THREADS - PRODUCER_REGISTERS * 128) / CONSUMERS / 8 * 8)
#define CONSUMER_REGISTERS (CONSUMER_REGISTERS_FREE > 240 ? 240 : CONSUMER_REGISTERS_FREE)
#define COPY_LAG (STAGES - 2)
#define TABLE_COPIES 32
// Odd in units of 16 bytes, so that the rows of a warp's look-ups lie in different banks.
#define WEIGHT_STRIDE (STEP_K / 2 + 16)
#define ACTIVATION_BYTES (TILE_M * STEP_K * 2)
#define SCALES (TILE_N * CHUNKS)
#define STAGE_BYTES ((ACTIVATION_BYTES + TILE_N * WEIGHT_STRIDE + SCALES * 4 + 1023) / 1024 * 1024)

// Rows of 64 elements, 128 bytes, whose pieces of 16 bytes are swizzled as wgmma expects.
__device__ __forceinline__ unsigned activation_offset(unsigned row, unsigned part) {
  return part / 8 * (TILE_M * 128) + row * 128 + (part % 8 ^ row % 8) * 16;
}

__device__ __forceinline__ unsigned first_row(unsigned warp, unsigned r) {
  return (warp / 4 * ROW_TILES + r) * 64 + warp % 4 * 16;
}

#include "fragments.cuh"
#include "loader.cuh"
#include "wgmma.cuh"

// The fragment register of a pair of codes: values times scale. lane4: 4 * lane.
INLINE u32 scaled_pair(const u32* table, u32 byte, u32 lane4, float scale) {
  u32 pair = *reinterpret_cast<const u32*>(reinterpret_cast<const char*>(table) + (byte * 128 + lane4));
  return pack_pair(half_to_float(pair & 0xFFFFu) * scale, half_to_float(pair >> 16) * scale);
}

// Fragments of 16 rows by 64 elements, where element order is the natural one: for product j, lane
// 4 g + t needs byte t of words 2 j and 2 j + 1 of the rows g and g + 8.
INLINE void decode_fragments(u32 (&a)[4][4], const u8* rows, const float* scales, const u32* table, u32 lane) {
  u32 select = 0x4440u | lane % 4, lane4 = lane * 4;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const uint4* source = reinterpret_cast<const uint4*>(rows + half * 8 * WEIGHT_STRIDE);
    uint4 low = source[0], high = source[1];
    u32 words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    const float* scale = scales + half * 8 * CHUNKS;
#pragma unroll
    for (int i = 0; i < 8; i++)
      a[i / 2][i % 2 * 2 + half] = scaled_pair(table, __byte_perm(words[i], 0, select), lane4, scale[i * 8 / CHUNK]);
  }
}

INLINE void consume(const Arguments& args, const Work& work, Pipeline& pipeline, char* stages, const u32* table) {
  u32 lane = threadIdx.x % 32, warp = __shfl_sync(0xFFFFFFFFu, threadIdx.x / 32, 0);
  Step step(work.begin, work);
  Accumulators acc;
  bool begins = step.k_step == 0, fresh = true;
  u32 slot = 0, phase = 0;
  u32 a[2][4][4];
  for (u32 index = work.begin; index < work.end; index++) {
    pipeline.full[slot].wait(phase);
    Stage stage{stages + slot * STAGE_BYTES};
#pragma unroll
    for (int piece = 0; piece < STEP_K / CHUNK_K * ROW_TILES; piece++) {
      int chunk = piece / ROW_TILES, r = piece % ROW_TILES;
      u32 row = first_row(warp, r) + lane / 4;
      decode_fragments(a[piece % 2], stage.weights() + row * WEIGHT_STRIDE + chunk * 32,
                       stage.scales() + row * CHUNKS + chunk * (CHUNK_K / CHUNK), table, lane);
      u64 b = descriptor(stage.activations() + chunk * (TILE_M * 128));
      wgmma_fence();
#pragma unroll
      for (int j = 0; j < 4; j++) wgmma(acc[r], a[piece % 2][j], b + 2 * j, !fresh || chunk > 0 || j > 0);
      wgmma_commit();
      wgmma_wait<1>();
      // Now the step before is done with.
      if (piece == 0) pipeline.empty[slot == 0 ? STAGES - 1 : slot - 1].arrive_if(index > work.begin && lane == 0);
    }
    fresh = false;
    if (++slot == STAGES) slot = 0, phase++;

    bool ends = step.k_step + 1 == work.k_steps;
    if (ends || index + 1 == work.end) {
      wgmma_wait<0>();
#pragma unroll
      for (int i = 0; i < ACCUMULATORS; i++) asm volatile("" : "+f"((&acc[0][0][0])[i])::"memory");
      bool done = begins && ends || combine(args, acc, work, step.tile, begins);
      if (done) store_tile(args, acc, step);
      begins = fresh = true;
    }
    step.advance(work);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) gemm_4bit_wgmma(Arguments args) {
  __shared__ __align__(16) u32 table[TABLE_WORDS];
  __shared__ Pipeline pipeline;
  __shared__ float scale_codes[NESTED ? 256 : 1];
  extern __shared__ uint4 dynamic[];
  char* stages = reinterpret_cast<char*>(dynamic);
  stages += (1024 - shared_address(stages) % 1024) % 1024;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      pipeline.full[i].init(COPIERS);
      pipeline.empty[i].init(CONSUMERS / 32);
    }
  }
#if NESTED
  for (u32 i = threadIdx.x; i < 256; i += THREADS) scale_codes[i] = args.absmax_code[i];
#endif
  publish_barriers();
  Work work(args);
  // The same in all lanes, which the compiler must know, or it waits for each product of wgmma.
  if (__shfl_sync(0xFFFFFFFFu, threadIdx.x / 32, 0) >= WARPS_N) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(PRODUCER_REGISTERS));
    produce(args, work, pipeline, stages, scale_codes);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CONSUMER_REGISTERS));
    fill_table<pack_half>(table, args.codebook, CONSUMERS);
    sync_threads(1, CONSUMERS);
    consume(args, work, pipeline, stages, table);
  }
}
