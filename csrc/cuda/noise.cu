// noise on CUDA: a thread a position.
#include "noise.h"

#include <cuda_runtime.h>

namespace vllm_diffusion {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads) noise_kernel(NoiseArgs args) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < args.rows * args.columns)
    args.out[i] = noise_at(args, i / args.columns, i % args.columns);
}

}  // namespace

int noise_cuda(const NoiseArgs& args, void* stream) {
  const int64_t blocks = (args.rows * args.columns + kThreads - 1) / kThreads;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  noise_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      args);
  return cudaGetLastError();
}

}  // namespace vllm_diffusion
