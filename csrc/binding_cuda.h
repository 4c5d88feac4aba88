// Device guard and stream for the CUDA bindings, through torch's stable ABI.
#pragma once

#ifdef USE_CUDA

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include "cuda/errors.h"

namespace vllm_diffusion {

// Makes the device of `tensor` current for as long as it lives.
class CudaScope {
 public:
  explicit CudaScope(const torch::stable::Tensor& tensor)
      : device_(tensor.get_device_index()), guard_(device_) {}

  // The current stream of the device, a cudaStream_t.
  void* stream() const {
    void* out = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &out));
    return out;
  }

  // Raises for anything but cudaSuccess.
  void check(int error) const {
    STD_TORCH_CHECK(error == 0, "CUDA kernel launch failed: ", cuda_error_text(error));
  }

 private:
  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
};

}  // namespace vllm_diffusion

#endif  // USE_CUDA
