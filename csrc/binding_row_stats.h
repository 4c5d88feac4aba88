// What the bindings of row_stats and merge_row_stats share: their outputs.
#pragma once

#include <tuple>

#include "binding.h"
#include "row_stats.h"

namespace vllm_diffusion {

using RowStatsResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Allocates the outputs on the device of `like`, [rows] each, and points `args` at them.
inline RowStatsResult make_row_stats_outputs(const Tensor& like, int64_t rows,
                                             RowStatsOutputs& args) {
  const auto empty = [&](ScalarType type) { return torch::stable::new_empty(like, {rows}, type); };
  RowStatsResult out = {empty(ScalarType::Long),  empty(ScalarType::Float),
                        empty(ScalarType::Float), empty(ScalarType::Float),
                        empty(ScalarType::Float), empty(ScalarType::Float)};
  args.sample = data<int64_t>(std::get<0>(out));
  args.sample_prob = data<float>(std::get<1>(out));
  args.top1 = data<float>(std::get<2>(out));
  args.top2 = data<float>(std::get<3>(out));
  args.entropy = data<float>(std::get<4>(out));
  args.lse = data<float>(std::get<5>(out));
  return out;
}

}  // namespace vllm_diffusion
