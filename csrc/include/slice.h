// A row is worked through in slices of fixed length, merged in order: the result depends neither on
// the number of threads nor on which of them did what. Shared by the CPU and the CUDA kernels.
//
// A slice is also a group of the draw, which has two stages: a group, with the probability of all
// its ids, then an id of it. Both are Gumbel-max draws. What the groups weigh falls off the sums of
// the softmax, so that random numbers are needed for the groups and the ids of one of them only,
// instead of for every id of the row. Those weights are sums in float32: groups whose scores come
// closer than kDrawMargin are summed again in float64, so that the draw does not depend on
// rounding.
#pragma once

#include <cmath>
#include <cstdint>

#include "common.h"
#include "philox.h"

namespace vllm_diffusion {

constexpr int64_t kSliceIds = 2048;
constexpr double kDrawMargin = 1e-4;  // the rounding of a group's score stays below 1e-5

// What one slice of a row contributes. Sums are relative to the slice's own maximum: with
// x = (l - max_all) / stat_temperature, z = sum e^x and s = sum x e^x.
struct SliceStats {
  double z;
  double s;
  float max_all;  // over all ids, the banned one too; -inf when every logit is
  float max1;     // the two highest logits of the ids that may be chosen
  float max2;
  float mass;  // of those ids: sum of e^((l - max1) / temperature); 0 where no draw is wanted
};

VLLM_DIFFUSION_HD SliceStats empty_slice() {
  return {0.0, 0.0, -INFINITY, -INFINITY, -INFINITY, 0.0f};
}

// Widens the three maxima of `row` by those of `part`.
VLLM_DIFFUSION_HD void join_maxima(SliceStats& row, const SliceStats& part) {
  if (part.max_all > row.max_all) row.max_all = part.max_all;
  const float low = part.max1 > row.max1 ? row.max1 : part.max1;
  if (part.max1 > row.max1) row.max1 = part.max1;
  const float second = part.max2 > row.max2 ? part.max2 : row.max2;
  row.max2 = low > second ? low : second;
}

// Adds the sums of `part` to those of `row`, whose max_all must be final. `inverse` is
// 1 / stat_temperature. A NaN survives.
VLLM_DIFFUSION_HD void add_sums(SliceStats& row, const SliceStats& part, double inverse) {
  if (part.z == 0.0) return;  // no finite logit in it
  const double shift = part.max_all == row.max_all
                           ? 0.0
                           : (static_cast<double>(part.max_all) - row.max_all) * inverse;
  const double scale = exp(shift);
  if (scale == 0.0 && part.z == part.z) return;  // keeps 0 * -inf out of s
  row.z += scale * part.z;
  row.s += scale * (part.s + shift * part.z);
}

// Score of a group in the draw, relative to top / temperature, `top` being the row's highest logit
// that may be chosen. -inf: nothing can be drawn from it.
VLLM_DIFFUSION_HD double group_score(float max1, double mass, float top, float temperature,
                                     uint32_t bits) {
  if (!(mass > 0.0)) return -INFINITY;
  const double lead = max1 == top ? 0.0 : (static_cast<double>(max1) - top) / temperature;
  return lead + log(mass) + gumbel(bits);
}

// The published numbers of a row, from its merged slices.
struct RowSummary {
  double inverse;  // 1 / stat_temperature
  double log_z;
  float max_all;
  bool broken;  // NaN or +inf among the logits, or a stat_temperature that is not a positive number
  bool empty;   // every logit is -inf
};

VLLM_DIFFUSION_HD bool is_empty(const SliceStats& row) {
  return row.z == 0.0;
}

VLLM_DIFFUSION_HD bool is_broken(const SliceStats& row, double inverse) {
  return !(row.z < INFINITY) || row.max_all == INFINITY || !(inverse > 0.0);
}

// Whether there is a distribution, and an id to choose from it.
VLLM_DIFFUSION_HD bool is_choosable(const SliceStats& row, double inverse) {
  return !is_empty(row) && !is_broken(row, inverse) && row.max1 > -INFINITY;
}

VLLM_DIFFUSION_HD RowSummary summarize(const SliceStats& row, double inverse) {
  RowSummary out;
  out.inverse = inverse;
  out.max_all = row.max_all;
  out.empty = is_empty(row);
  out.broken = is_broken(row, inverse);
  out.log_z = out.broken || out.empty ? 0.0 : log(row.z);
  return out;
}

VLLM_DIFFUSION_HD bool usable(const RowSummary& row) {
  return !row.broken && !row.empty;
}

VLLM_DIFFUSION_HD float probability(const RowSummary& row, float logit) {
  if (!usable(row) || logit == -INFINITY) return 0.0f;
  return static_cast<float>(
      exp((static_cast<double>(logit) - row.max_all) * row.inverse - row.log_z));
}

VLLM_DIFFUSION_HD float entropy(const RowSummary& row, const SliceStats& stats) {
  if (!usable(row)) return 0.0f;
  const double h = row.log_z - stats.s / stats.z;  // both terms are >= 0: nothing cancels
  return static_cast<float>(h > 0.0 ? h : 0.0);
}

VLLM_DIFFUSION_HD float log_sum_exp(const RowSummary& row) {
  if (row.broken) return NAN;
  if (row.empty) return -INFINITY;
  return static_cast<float>(static_cast<double>(row.max_all) * row.inverse + row.log_z);
}

// What a row without a usable distribution is given as argmax and sample.
VLLM_DIFFUSION_HD int64_t fallback_id(int64_t banned) {
  return banned == 0 ? 1 : 0;
}

// 1 / stat_temperature for the exponents in float32. Too large a value would make 0 * inf; what it
// is for an invalid temperature does not matter, since `summarize` discards the row.
VLLM_DIFFUSION_HD float exponent_scale(float temperature) {
  const float inverse = 1.0f / temperature;
  return inverse < 1e30f ? inverse : 1e30f;
}

// 1 / stat_temperature, NaN where it is no positive finite number.
VLLM_DIFFUSION_HD double inverse_temperature(float temperature) {
  return temperature > 0.0f && temperature < INFINITY ? 1.0 / static_cast<double>(temperature)
                                                      : static_cast<double>(NAN);
}

}  // namespace vllm_diffusion
