// quantize_rows: float8_e4m3fn of every row, as multiples of a scale of its own.
#pragma once

#include "common.h"

namespace vllm_diffusion {

constexpr int64_t kQuantizeMaxColumns = int64_t{1} << 15;

struct QuantizeRowsArgs {
  Dtype dtype;        // float16 or bfloat16
  const void* input;  // [rows, columns], if gated [rows, 2 * columns]; rows `stride` elements apart
  void* out;          // [rows, columns] float8_e4m3fn
  float* scale;       // [rows]
  int64_t rows;
  int64_t columns;  // of out: a multiple of 8, at most kQuantizeMaxColumns
  int64_t stride;   // a multiple of 8
  // Whether silu(first half) * second half is quantised.
  bool gated;
};

// All begin at multiples of 16 bytes, out and its rows at multiples of 8. Returns a cudaError_t.
int quantize_rows_cuda(const QuantizeRowsArgs& args, void* stream);

}  // namespace vllm_diffusion
