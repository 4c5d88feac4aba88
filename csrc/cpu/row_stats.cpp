// row_stats on the CPU: spreads slices or whole rows over threads and writes the outputs.
//
// Few rows are spread slice by slice, many rows row by row (a row is then still in the cache when
// it is looked at again for the draw). Both ways do the same arithmetic in the same order.
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
        slices_((args.vocab + kSlice - 1) / kSlice) {}

  int64_t slices() const { return slices_; }
  int64_t vocab() const { return args_.vocab; }

  SliceStats stats(int64_t row, int64_t slice) const {
    return kernels_.stats(at(row, slice), exponent_scale(args_.stat_temperature[row]));
  }

  // Merges the slices of a row and writes everything but the sample. Returns where the draw starts
  // from: the argmax, with its score, if the row is one to draw from.
  Draw finish_stats(int64_t row, const SliceStats* slices) const {
    const double inverse = inverse_temperature(args_.stat_temperature[row]);
    const SliceStats all = merge(slices, inverse);
    const RowSummary summary = summarize(all, inverse);
    const bool choosable = usable(summary) && all.max1 > -INFINITY;
    int64_t best = fallback_id(args_.banned);
    if (choosable) {
      int64_t s = 0;
      while (slices[s].max1 != all.max1) ++s;
      best = kernels_.find(at(row, s), all.max1);
    }
    args_.argmax[row] = args_.sample[row] = best;
    args_.top1[row] = args_.sample_prob[row] = probability(summary, all.max1);
    args_.top2[row] = probability(summary, all.max2);
    args_.entropy[row] = entropy(summary, all);
    args_.lse[row] = log_sum_exp(summary);
    if (!choosable || !(args_.temperature[row] > 0.0f)) return {0.0, -1};

    uint32_t words[4];
    philox_block(key(row), static_cast<uint32_t>(best / 4), words[0], words[1], words[2], words[3]);
    return {gumbel_score(all.max1, args_.temperature[row], words[best % 4]), best};
  }

  void draw(int64_t row, int64_t slice, float max1, Draw& best) const {
    kernels_.draw(at(row, slice), args_.temperature[row], key(row), max1, best);
  }

  void finish_draw(int64_t row, const Draw& best, const SliceStats* slices) const {
    if (best.id < 0 || best.id == args_.argmax[row]) return;
    args_.sample[row] = best.id;
    const double inverse = inverse_temperature(args_.stat_temperature[row]);
    const RowSummary summary = summarize(merge(slices, inverse), inverse);
    args_.sample_prob[row] = probability(summary, logit(row, best.id));
  }

  void skip(int64_t row) const {
    args_.argmax[row] = args_.sample[row] = -1;
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

  const char* row_data(int64_t row) const {
    return static_cast<const char*>(args_.logits) + row * args_.row_stride * element_size_;
  }

  Slice at(int64_t row, int64_t slice) const {
    const int64_t begin = slice * kSlice;
    return {row_data(row), args_.dtype, begin, std::min(kSlice, args_.vocab - begin), args_.banned};
  }

  PhiloxKey key(int64_t row) const { return philox_key(args_.seed[row], args_.offset[row]); }

  // One logit in float32, read as a slice of length one.
  float logit(int64_t row, int64_t id) const {
    return kernels_.stats({row_data(row), args_.dtype, id, 1, -1}, 1.0f).max1;
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
      Draw best = work.finish_stats(row, slices.data());
      if (best.id < 0) continue;
      for (int64_t s = 0; s < work.slices(); ++s)
        work.draw(row, s, slices[static_cast<size_t>(s)].max1, best);
      work.finish_draw(row, best, slices.data());
    }
  };
  const int64_t grain = (kIdsPerThread + work.vocab() - 1) / work.vocab();
  parallel_for(parallel, static_cast<int64_t>(rows.size()), grain, body);
}

void by_slices(const RowStats& work, const std::vector<int64_t>& rows, const Parallel& parallel) {
  const int64_t per_row = work.slices();
  const int64_t units = static_cast<int64_t>(rows.size()) * per_row;
  const int64_t ids = std::min(kSlice, work.vocab());
  const int64_t grain = (kIdsPerThread + ids - 1) / ids;
  std::vector<SliceStats> slices(static_cast<size_t>(units));
  auto stats = [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u)
      slices[static_cast<size_t>(u)] =
          work.stats(rows[static_cast<size_t>(u / per_row)], u % per_row);
  };
  parallel_for(parallel, units, grain, stats);

  std::vector<Draw> start(rows.size());
  bool any_draw = false;
  for (size_t i = 0; i < rows.size(); ++i) {
    start[i] = work.finish_stats(rows[i], slices.data() + static_cast<int64_t>(i) * per_row);
    any_draw |= start[i].id >= 0;
  }
  if (!any_draw) return;

  std::vector<Draw> found(static_cast<size_t>(units));
  auto draw = [&](int64_t begin, int64_t end) {
    Draw best = {0.0, -1};
    for (int64_t u = begin; u < end; ++u) {
      const size_t i = static_cast<size_t>(u / per_row);
      if (u == begin || u % per_row == 0) best = start[i];
      if (start[i].id >= 0)
        work.draw(rows[i], u % per_row, slices[static_cast<size_t>(u)].max1, best);
      found[static_cast<size_t>(u)] = best;
    }
  };
  parallel_for(parallel, units, grain, draw);

  for (size_t i = 0; i < rows.size(); ++i) {
    Draw best = start[i];
    if (best.id < 0) continue;
    const size_t first = i * static_cast<size_t>(per_row);
    for (size_t u = first; u < first + static_cast<size_t>(per_row); ++u)
      if (draw_wins(found[u].score, found[u].id, best)) best = found[u];
    work.finish_draw(rows[i], best, slices.data() + first);
  }
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
