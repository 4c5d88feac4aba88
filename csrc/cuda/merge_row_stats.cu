// merge_row_stats on CUDA: a thread per row.
#include <cuda_runtime.h>

#include "merge_row_stats.h"

namespace vllm_diffusion {
namespace {

constexpr int kThreads = 64;

__global__ void __launch_bounds__(kThreads) merge_row_stats_kernel(MergeRowStatsArgs args) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row < args.rows) merge_row(args, row);
}

}  // namespace

int merge_row_stats_cuda(const MergeRowStatsArgs& args, void* stream) {
  const int64_t blocks = (args.rows + kThreads - 1) / kThreads;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  merge_row_stats_kernel<<<static_cast<unsigned>(blocks), kThreads, 0,
                           static_cast<cudaStream_t>(stream)>>>(args);
  return cudaGetLastError();
}

}  // namespace vllm_diffusion
