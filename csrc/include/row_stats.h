// row_stats: one look at each row of logits gives a token, three probabilities, the entropy and the
// log-sum-exp. The Python wrapper (vllm/v1/diffusion/kernels/row_stats.py) documents the meaning;
// this header is the layer of raw pointers.
#pragma once

#include <cstdint>

#include "common.h"

namespace vllm_diffusion {

// What is written of each row, [rows] each.
struct RowStatsOutputs {
  int64_t* sample;
  float* sample_prob;
  float* top1;
  float* top2;
  float* entropy;
  float* lse;
};

struct RowStatsArgs : RowStatsOutputs {
  const void* logits;  // [rows, vocab], rows `row_stride` elements apart
  Dtype dtype;
  int64_t rows;
  int64_t vocab;
  int64_t row_stride;
  const float* temperature;       // [rows]; > 0: draw, otherwise the argmax is the sample
  const float* stat_temperature;  // [rows]
  const int64_t* seed;            // [rows]
  const int64_t* offset;          // [rows]
  const bool* active;             // [rows], or null: all rows
  int64_t banned;                 // never chosen; -1: none
};

void row_stats_cpu(const RowStatsArgs& args, const Parallel& parallel);

// Bytes of scratch that row_stats_cuda needs.
int64_t row_stats_cuda_scratch(int64_t rows, int64_t vocab);

// `stream` is a cudaStream_t; returns a cudaError_t. Allocates nothing and does not synchronise.
int row_stats_cuda(const RowStatsArgs& args, void* scratch, void* stream);

}  // namespace vllm_diffusion
