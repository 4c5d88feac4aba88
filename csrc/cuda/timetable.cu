// timetable on CUDA: a thread a request.
#include "timetable.h"

#include <cuda_runtime.h>

namespace vllm_diffusion {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads) timetable_kernel(TimetableArgs args) {
  const int64_t r = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (r < args.requests) args.out[r] = timetable_share(args.eps[r], args.steps[r], args.step[r]);
}

}  // namespace

int timetable_cuda(const TimetableArgs& args, void* stream) {
  const int64_t blocks = (args.requests + kThreads - 1) / kThreads;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  timetable_kernel<<<static_cast<unsigned>(blocks), kThreads, 0,
                     static_cast<cudaStream_t>(stream)>>>(args);
  return cudaGetLastError();
}

}  // namespace vllm_diffusion
