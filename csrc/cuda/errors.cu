#include "cuda/errors.h"

#include <cuda_runtime.h>

namespace vllm_diffusion {

const char* cuda_error_text(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

}  // namespace vllm_diffusion
