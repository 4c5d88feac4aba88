// skinny_linear: y = x W^T + bias for few rows of x.
#pragma once

#include "common.h"

namespace vllm_diffusion {

constexpr int64_t kSkinnyMaxTokens = 64;
constexpr int64_t kSkinnyMaxRows = int64_t{1} << 20;

struct SkinnyLinearArgs {
  Dtype dtype;         // float16 or bfloat16: of bias and out, and of the other two unless `eight`
  bool eight;          // whether input and weight are float8_e4m3fn, which have scales
  const void* input;   // [tokens, columns], rows `input_stride` elements apart
  const void* weight;  // [rows, columns]
  const void* bias;    // [rows] or null
  int32_t* arrived;    // [tiles], zeros before and after: where a tile is shared, who has come
  void* out;           // [tokens, rows]; if gated [tokens, rows / 2]
  int64_t tokens;      // 1 ... kSkinnyMaxTokens
  int64_t rows;        // a multiple of 8, if gated of 16; at most kSkinnyMaxRows
  int64_t columns;     // a multiple of 64, if eight of 128
  int64_t input_stride;
  // Whether the first half of the rows gates the second: y = silu(gate) * up.
  bool gated;
  // If eight: what input and weight are multiples of, by token and by row of W; step 0: one for
  // all.
  const float* input_scale;
  const float* weight_scale;
  int32_t input_scale_step, weight_scale_step;
};

// Bytes of scratch that a call wants on the current device; it need not be cleared.
int64_t skinny_linear_scratch(const SkinnyLinearArgs& args);

// How many entries of `arrived` a call uses.
int64_t skinny_linear_tiles(const SkinnyLinearArgs& args);

// Needs a GPU of compute capability 9.0; input and weight begin at multiples of 16 bytes, as do the
// input's rows. W is read before the kernels before this one have ended: they may not write it, nor
// weight_scale.
// Returns a cudaError_t.
int skinny_linear_cuda(const SkinnyLinearArgs& args, void* scratch, void* stream);

}  // namespace vllm_diffusion
