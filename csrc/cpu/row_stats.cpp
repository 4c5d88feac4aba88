// row_stats on the CPU: spreads slices or whole rows over threads and writes the outputs.
//
// Few rows are spread slice by slice, many rows row by row. Both ways do the same arithmetic in the
// same order.
#include "row_stats.h"

#include <algorithm>
#include <vector>

#include "simd/kernels.h"

namespace vllm_diffusion {
namespace {

class RowStats {
 public:
  RowStats(const RowStatsArgs& args, const IsaKernels& kernels)
      : args_(args),
        kernels_(kernels),
        element_size_(args.dtype == Dtype::kFloat32 ? 4 : 2),
        slices_((args.vocab + kSliceIds - 1) / kSliceIds) {}

  int64_t slices() const { return slices_; }
  int64_t vocab() const { return args_.vocab; }

  SliceStats stats(int64_t row, int64_t slice) const {
    const float temperature = args_.temperature[row];
    return kernels_.stats(at(row, slice), exponent_scale(args_.stat_temperature[row]),
                          temperature > 0.0f ? exponent_scale(temperature) : 0.0f);
  }

  // Merges the slices of a row, draws and writes the outputs.
  void finish(int64_t row, const SliceStats* slices) const {
    const double inverse = inverse_temperature(args_.stat_temperature[row]);
    const SliceStats all = merge(slices, inverse);
    const RowSummary summary = summarize(all, inverse);
    const bool choosable = is_choosable(all, inverse);
    int64_t best = fallback_id(args_.banned);
    if (choosable) {
      int64_t s = 0;
      while (slices[s].max1 != all.max1) ++s;
      best = kernels_.find(at(row, s), all.max1);
    }
    args_.sample[row] = best;
    args_.top1[row] = args_.sample_prob[row] = probability(summary, all.max1);
    args_.top2[row] = probability(summary, all.max2);
    args_.entropy[row] = entropy(summary, all);
    args_.lse[row] = log_sum_exp(summary);
    if (!choosable || !(args_.temperature[row] > 0.0f)) return;
    const int64_t id = draw_id(row, draw_slice(row, slices, all.max1), slices);
    args_.sample[row] = id;
    args_.sample_prob[row] = probability(summary, logit(row, id));
  }

  void skip(int64_t row) const {
    args_.sample[row] = -1;
    args_.sample_prob[row] = args_.top1[row] = args_.top2[row] = 0.0f;
    args_.entropy[row] = args_.lse[row] = 0.0f;
  }

 private:
  SliceStats merge(const SliceStats* slices, double inverse) const {
    SliceStats all = empty_slice();
    for (int64_t s = 0; s < slices_; ++s) join_maxima(all, slices[s]);
    for (int64_t s = 0; s < slices_; ++s) add_sums(all, slices[s], inverse);
    return all;
  }

  // First stage of the draw; see slice.h.
  int64_t draw_slice(int64_t row, const SliceStats* slices, float top) const {
    std::vector<double> scores(static_cast<size_t>(slices_));
    const auto score = [&](int64_t s, double mass) {
      return group_score(slices[s].max1, mass, top, args_.temperature[row],
                         philox_word(key(row), s, kGroupStream));
    };
    for (int64_t s = 0; s < slices_; ++s)
      scores[static_cast<size_t>(s)] = score(s, static_cast<double>(slices[s].mass));
    const auto best = std::max_element(scores.begin(), scores.end());
    const double floor = *best - kDrawMargin;
    const auto close = [&](double x) { return x >= floor; };
    if (std::count_if(scores.begin(), scores.end(), close) < 2) return best - scores.begin();
    for (int64_t s = 0; s < slices_; ++s) {
      double& mine = scores[static_cast<size_t>(s)];
      mine = close(mine)
                 ? score(s, kernels_.mass(at(row, s), args_.temperature[row], slices[s].max1))
                 : -INFINITY;
    }
    return std::max_element(scores.begin(), scores.end()) - scores.begin();
  }

  // Second stage. Starts from the slice's highest logit, which leaves few others to look at.
  int64_t draw_id(int64_t row, int64_t slice, const SliceStats* slices) const {
    const float max1 = slices[slice].max1, temperature = args_.temperature[row];
    const int64_t first = kernels_.find(at(row, slice), max1);
    Draw best = {gumbel_score(max1, temperature, philox_word(key(row), first, kIdStream)), first};
    kernels_.draw(at(row, slice), temperature, key(row), best);
    return best.id;
  }

  const char* row_data(int64_t row) const {
    return static_cast<const char*>(args_.logits) + row * args_.row_stride * element_size_;
  }

  Slice at(int64_t row, int64_t slice) const {
    const int64_t begin = slice * kSliceIds;
    return {row_data(row), args_.dtype, begin, std::min(kSliceIds, args_.vocab - begin),
            args_.banned};
  }

  PhiloxKey key(int64_t row) const { return philox_key(args_.seed[row], args_.offset[row]); }

  // One logit in float32, read as a slice of length one.
  float logit(int64_t row, int64_t id) const {
    return kernels_.stats({row_data(row), args_.dtype, id, 1, -1}, 1.0f, 0.0f).max1;
  }

  const RowStatsArgs& args_;
  const IsaKernels& kernels_;
  const int64_t element_size_;
  const int64_t slices_;
};

// Ids a thread must get to be worth waking: some microseconds of work.
constexpr int64_t kIdsPerThread = 8192;

void by_rows(const RowStats& work, const std::vector<int64_t>& rows, const Parallel& parallel) {
  auto body = [&](int64_t begin, int64_t end) {
    std::vector<SliceStats> slices(static_cast<size_t>(work.slices()));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = rows[static_cast<size_t>(i)];
      for (int64_t s = 0; s < work.slices(); ++s)
        slices[static_cast<size_t>(s)] = work.stats(row, s);
      work.finish(row, slices.data());
    }
  };
  const int64_t grain = (kIdsPerThread + work.vocab() - 1) / work.vocab();
  parallel_for(parallel, static_cast<int64_t>(rows.size()), grain, body);
}

void by_slices(const RowStats& work, const std::vector<int64_t>& rows, const Parallel& parallel) {
  const int64_t per_row = work.slices();
  const int64_t units = static_cast<int64_t>(rows.size()) * per_row;
  const int64_t ids = std::min(kSliceIds, work.vocab());
  const int64_t grain = (kIdsPerThread + ids - 1) / ids;
  std::vector<SliceStats> slices(static_cast<size_t>(units));
  auto stats = [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u)
      slices[static_cast<size_t>(u)] =
          work.stats(rows[static_cast<size_t>(u / per_row)], u % per_row);
  };
  parallel_for(parallel, units, grain, stats);
  auto finish = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      work.finish(rows[static_cast<size_t>(i)], slices.data() + i * per_row);
  };
  parallel_for(parallel, static_cast<int64_t>(rows.size()), 4, finish);
}

}  // namespace

void row_stats_cpu(const RowStatsArgs& args, const Parallel& parallel) {
  const RowStats work(args, isa_kernels());
  std::vector<int64_t> rows;
  rows.reserve(static_cast<size_t>(args.rows));
  for (int64_t row = 0; row < args.rows; ++row) {
    if (args.active == nullptr || args.active[row])
      rows.push_back(row);
    else
      work.skip(row);
  }
  if (rows.empty()) return;
  if (static_cast<int64_t>(rows.size()) >= 4 * parallel.threads)
    by_rows(work, rows, parallel);
  else
    by_slices(work, rows, parallel);
}

}  // namespace vllm_diffusion
