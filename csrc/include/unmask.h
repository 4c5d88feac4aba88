// unmask: chooses the positions that a denoising step unmasks, writes them into the canvas and
// advances the step. The Python wrapper (vllm/v1/diffusion/kernels/unmask.py) documents the
// meaning.
#pragma once

#include <cmath>
#include <cstdint>

#include "common.h"

namespace vllm_diffusion {

// Mirrors vllm/v1/diffusion/kernels/rules.py.
enum UnmaskRule : int32_t {
  kGiven = 0,
  kStatic = 1,
  kDynamic = 2,
  kSequential = 3,
  kEntropyBounded = 4,
  kThreshold = 5,
  kFactor = 6,
};
constexpr int32_t kUnmaskRules = 7;
constexpr int64_t kMaxCanvas = 4096;

struct UnmaskArgs {
  const int64_t* token;      // [rows]
  const float* confidence;   // [rows]
  const float* entropy;      // [rows]
  const bool* picked;        // [rows], or null: none
  const int32_t* row_start;  // [requests + 1]
  const int64_t* slots;      // [requests]
  int64_t requests;
  int64_t rows;
  int64_t num_slots;
  int64_t width;                // W
  int64_t* canvas;              // [num_slots, W]
  bool* masked;                 // [num_slots, W]
  int32_t* unmasked_at;         // [num_slots, W]
  int32_t* step;                // [num_slots]
  const int32_t* rule;          // [num_slots]
  const int32_t* steps;         // [num_slots]
  const int32_t* block_length;  // [num_slots]
  const float* threshold;       // [num_slots]
  int32_t* remaining;           // [requests]
};

// Positions that step `step` of `steps` unmasks in a block of `block_length`: equal shares, the
// remainder to the earliest steps, and never none.
VLLM_DIFFUSION_HD int32_t unmask_quota(int32_t block_length, int32_t steps, int32_t step) {
  if (steps < 1) steps = 1;
  const int32_t n = block_length / steps + (step < block_length % steps ? 1 : 0);
  return n > 1 ? n : 1;
}

// What the row at rank `rank` (0: the most confident) must reach under FACTOR.
VLLM_DIFFUSION_HD float factor_bar(float factor, int32_t rank) {
  return static_cast<float>(1.0 - static_cast<double>(factor) / (rank + 2));
}

// A NaN confidence or entropy ranks last.
VLLM_DIFFUSION_HD float rank_confidence(float value) {
  return value == value ? value : -INFINITY;
}
VLLM_DIFFUSION_HD float rank_entropy(float value) {
  return value == value ? value : INFINITY;
}

// How many of `count` ranked rows FACTOR unmasks, when the first `passing` of them pass. With all
// but the last one passing, the published loop takes the last one too.
VLLM_DIFFUSION_HD int32_t factor_count(int32_t passing, int32_t count) {
  if (passing < 1) passing = 1;
  return passing >= count - 1 ? count : passing;
}

// The arguments that index the state (row_start, slots, rule) must be valid: the binding checks.
void unmask_cpu(const UnmaskArgs& args, const Parallel& parallel);

// A sentence about the first invalid entry of row_start, slots or rule, or null. Host memory only.
const char* unmask_problem(const UnmaskArgs& args);

// `stream` is a cudaStream_t; returns a cudaError_t. Allocates nothing and does not synchronise.
// A request whose slot, rule or row count is out of range is left alone, its `remaining` is -1.
int unmask_cuda(const UnmaskArgs& args, void* stream);

}  // namespace vllm_diffusion
