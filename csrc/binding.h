// What the bindings share: checks, and torch's thread pool.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "common.h"

namespace vllm_diffusion {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Parallel torch_threads() {
  uint32_t threads = 1;
  TORCH_ERROR_CODE_CHECK(torch_get_num_threads(&threads));
  return {[](int64_t count, int64_t grain, Parallel::Body body, void* context) {
            TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, count, grain, body, context));
          },
          static_cast<int>(threads)};
}

// A contiguous tensor of the given type and length on the device of `like`.
inline void check_vector(const Tensor& tensor, const char* name, ScalarType type, int64_t length,
                         const Tensor& like) {
  STD_TORCH_CHECK(
      tensor.is_cuda() == like.is_cuda() && tensor.get_device_index() == like.get_device_index(),
      name, " must be on the device of the first argument");
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " has the wrong dtype");
  STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == length, name, " must have ", length,
                  " entries in one dimension");
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
}

template <typename T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

}  // namespace vllm_diffusion
