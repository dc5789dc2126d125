// gemm_4bit on ordinary float32 arithmetic, for what tensor cores do not serve: float32
// activations, bfloat16 before sm_80, and any K at all.
//
// A warp owns ROWS weight rows and M_ROWS batch rows; lane l takes the 8 elements from 256 i + 8 l
// on. With GROUPED (K % 8 == 0) these lie in one quantization block and one aligned word; otherwise
// each element finds its own code and scale, which is slow and always right.
#include "gemm_4bit_arguments.cuh"

#define WARPS 8

INLINE float scale_at(const Arguments& args, i64 element, float offset) {
  i64 block = element >> args.block_shift;
  if (!args.absmax_8bit) return args.absmax[block];
  return add_rn(mul_rn(args.absmax_code[args.absmax_8bit[block]], args.absmax[block / 256]), offset);
}

// The 8 weights of a row from k on, zero beyond the row's end.
INLINE void load_weights(const Arguments& args, const float* table, i64 row, i64 k, float offset,
                         float (&weights)[8]) {
  i64 first = row * args.k + k;
#if GROUPED
  float scale = scale_at(args, first, offset);
  u32 word = *reinterpret_cast<const u32*>(args.weights + first / 2);
#pragma unroll
  for (int i = 0; i < 8; i++) weights[i] = table[(word >> (i * 4 ^ 4) & 15u) * 32] * scale;
#else
#pragma unroll
  for (int i = 0; i < 8; i++) {
    i64 at = first + i;
    bool inside = k + i < args.k;
    u32 byte = inside ? args.weights[at / 2] : 0u;
    u32 code = at % 2 ? byte & 15u : byte >> 4;
    weights[i] = inside ? table[code * 32] * scale_at(args, at, offset) : 0.0f;
  }
#endif
}

INLINE void load_activations(const Arguments& args, i64 row, i64 k, float (&values)[8]) {
  const Element* source = args.activations + row * args.k + k;
#if GROUPED && DTYPE == 0
  float4 low = *reinterpret_cast<const float4*>(source), high = *reinterpret_cast<const float4*>(source + 4);
  values[0] = low.x, values[1] = low.y, values[2] = low.z, values[3] = low.w;
  values[4] = high.x, values[5] = high.y, values[6] = high.z, values[7] = high.w;
#elif GROUPED
  uint4 packed = *reinterpret_cast<const uint4*>(source);
  u32 words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < 8; i++) values[i] = to_float((Element)(words[i / 2] >> (i % 2 * 16)));
#else
#pragma unroll
  for (int i = 0; i < 8; i++) values[i] = k + i < args.k ? to_float(source[i]) : 0.0f;
#endif
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, 1) gemm_4bit_general(Arguments args) {
  __shared__ float table[16 * 32];
  for (u32 i = threadIdx.x; i < 16 * 32; i += blockDim.x)
    table[i] = args.codebook[i / 32];
  __syncthreads();
  u32 lane = threadIdx.x % 32;
  i64 first_row = ((i64)blockIdx.x * WARPS + threadIdx.x / 32) * ROWS, first_m = (i64)blockIdx.y * M_ROWS;
  if (first_row >= args.n) return;
  float offset = args.absmax_8bit ? *args.absmax_offset : 0.0f;
  float acc[ROWS][M_ROWS] = {};
  for (i64 k = lane * 8; k < args.k; k += 256) {
    float weights[ROWS][8];
#pragma unroll
    for (int r = 0; r < ROWS; r++)
      load_weights(args, table + lane, min(first_row + r, args.n - 1), k, offset, weights[r]);
#pragma unroll
    for (int m = 0; m < M_ROWS; m++) {
      float values[8];
      load_activations(args, min(first_m + m, args.m - 1), k, values);
#pragma unroll
      for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int i = 0; i < 8; i++) acc[r][m] += weights[r][i] * values[i];
    }
  }
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
#pragma unroll
    for (int m = 0; m < M_ROWS; m++) {
      float sum = acc[r][m];
#pragma unroll
      for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, step);
      if (lane != 0 || first_row + r >= args.n || first_m + m >= args.m) continue;
      if (args.bias) sum += to_float(args.bias[first_row + r]);
      args.out[(first_m + m) * args.n + first_row + r] = from_float(sum);
    }
  }
}
