// add_rms_norm: residual += input, input = residual / rms(residual) * weight, in place.
#pragma once

#include "common.h"

namespace vllm_diffusion {

constexpr int64_t kNormMaxColumns = 8192;

struct AddRmsNormArgs {
  Dtype dtype;         // float16 or bfloat16
  void* input;         // [rows, columns], written
  void* residual;      // likewise
  const void* weight;  // [columns]
  int64_t rows;
  int64_t columns;  // a multiple of 8, at most kNormMaxColumns
  float epsilon;
  void* out;     // [rows, columns] float8_e4m3fn, what input becomes as multiples of `scale`;
  float* scale;  // [rows]; both null: not wanted
};

// All begin at multiples of 16 bytes. `weight` is read before the kernels before this one have
// ended. Returns a cudaError_t.
int add_rms_norm_cuda(const AddRmsNormArgs& args, void* stream);

}  // namespace vllm_diffusion
