// What a launcher's return value means.
#pragma once

namespace vllm_diffusion {

// The CUDA runtime's own description of a cudaError_t.
const char* cuda_error_text(int error);

}  // namespace vllm_diffusion
