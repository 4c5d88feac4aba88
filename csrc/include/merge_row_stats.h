// merge_row_stats: the statistics of whole rows of logits from those of shares of the vocabulary.
// The Python wrapper (vllm/v1/diffusion/kernels/merge_row_stats.py) documents the meaning.
#pragma once

#include <cmath>
#include <cstdint>

#include "row_stats.h"

namespace vllm_diffusion {

// What a share says of a row: the columns of `parts`.
enum ShareNumber { kBest, kId, kTop1, kTop2, kEntropy, kLse, kShareNumbers };

struct MergeRowStatsArgs : RowStatsOutputs {
  const float* parts;  // [shares, rows, kShareNumbers]
  int64_t shares;
  int64_t rows;
  const bool* active;  // [rows], or null: all rows
  int64_t banned;      // never chosen; -1: none
};

// The log-sum-exp of a share. A probability is rounded by a part of itself, a log-sum-exp by a part
// of a number that may be large: so the former says it more exactly, unless it is next to nothing.
VLLM_DIFFUSION_HD double share_lse(const float* part) {
  if (part[kTop1] < 1e-30f) return static_cast<double>(part[kLse]);
  return static_cast<double>(part[kBest]) - log(static_cast<double>(part[kTop1]));
}

VLLM_DIFFUSION_HD void merge_row(const MergeRowStatsArgs& args, int64_t row) {
  const int64_t apart = args.rows * kShareNumbers;
  const float* const first = args.parts + row * kShareNumbers;
  const bool read = args.active == nullptr || args.active[row];
  const float* best = first;
  double most = -INFINITY;
  bool number = true;
  for (int64_t i = 0; read && i < args.shares; ++i) {
    const float* part = first + i * apart;
    number = number && part[kLse] == part[kLse];
    if (part[kBest] > best[kBest]) best = part;  // Of equal ones the lowest id.
    most = fmax(most, share_lse(part));
  }
  if (!read || !number || most == -INFINITY) {
    args.sample[row] = read ? (args.banned == 0 ? 1 : 0) : -1;
    args.sample_prob[row] = args.top1[row] = args.top2[row] = args.entropy[row] = 0.0f;
    args.lse[row] = read ? (number ? -INFINITY : NAN) : 0.0f;
    return;
  }
  double sum = 0.0;
  for (int64_t i = 0; i < args.shares; ++i) sum += exp(share_lse(first + i * apart) - most);
  const double lse = most + log(sum);
  double second = 0.0, entropy = 0.0;
  for (int64_t i = 0; i < args.shares; ++i) {
    const float* part = first + i * apart;
    const double log_weight = share_lse(part) - lse, weight = exp(log_weight);
    if (weight > 0.0) entropy += weight * (static_cast<double>(part[kEntropy]) - log_weight);
    const double other = part == best ? weight * static_cast<double>(part[kTop2])
                                      : exp(static_cast<double>(part[kBest]) - lse);
    second = fmax(second, other);
  }
  const float top1 = static_cast<float>(exp(static_cast<double>(best[kBest]) - lse));
  args.sample[row] = static_cast<int64_t>(best[kId]);
  args.sample_prob[row] = args.top1[row] = top1;
  args.top2[row] = static_cast<float>(second);
  args.entropy[row] = static_cast<float>(entropy);
  args.lse[row] = static_cast<float>(lse);
}

void merge_row_stats_cpu(const MergeRowStatsArgs& args);

// `stream` is a cudaStream_t; returns a cudaError_t. Allocates nothing and does not synchronise.
int merge_row_stats_cuda(const MergeRowStatsArgs& args, void* stream);

}  // namespace vllm_diffusion
