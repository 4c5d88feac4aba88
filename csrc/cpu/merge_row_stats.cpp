// merge_row_stats on the CPU: a few numbers per row, on one thread.
#include "merge_row_stats.h"

namespace vllm_diffusion {

void merge_row_stats_cpu(const MergeRowStatsArgs& args) {
  for (int64_t row = 0; row < args.rows; ++row) merge_row(args, row);
}

}  // namespace vllm_diffusion
