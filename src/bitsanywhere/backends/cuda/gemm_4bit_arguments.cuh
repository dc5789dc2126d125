// The arguments of every gemm_4bit kernel.
#pragma once
#include "convert.cuh"

// absmax_8bit, absmax_code and absmax_offset are null but for nested scales; bias may be null.
// partial and arrivals: see workspace.py. stages: of the pipeline, if there is one.
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
  u32 block_shift, stages;
};
