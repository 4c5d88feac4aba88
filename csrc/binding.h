// What the bindings share: checks, torch's thread pool, and how an operator is registered.
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

inline void check_device(const Tensor& tensor, const char* name, const Tensor& like,
                         const char* like_name) {
  STD_TORCH_CHECK(
      tensor.is_cuda() == like.is_cuda() && tensor.get_device_index() == like.get_device_index(),
      name, " must be on the device of ", like_name);
}

// The dtype of an argument that kernels take in 16 bits only.
inline Dtype half_dtype(const Tensor& tensor, const char* name) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::BFloat16 || type == ScalarType::Half, name,
                  " must be bfloat16 or float16");
  return type == ScalarType::BFloat16 ? Dtype::kBFloat16 : Dtype::kFloat16;
}

// The dtype of an argument that may also be float32.
inline Dtype float_dtype(const Tensor& tensor, const char* name) {
  if (tensor.scalar_type() == ScalarType::Float) return Dtype::kFloat32;
  STD_TORCH_CHECK(
      tensor.scalar_type() == ScalarType::Half || tensor.scalar_type() == ScalarType::BFloat16,
      name, " must be float32, float16 or bfloat16");
  return half_dtype(tensor, name);
}

// Whether a tensor begins at a multiple of so many bytes.
inline bool begins_at(const Tensor& tensor, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(tensor.data_ptr()) % bytes == 0;
}

// A contiguous tensor of the given type and length on the device of `like`.
inline void check_vector(const Tensor& tensor, const char* name, ScalarType type, int64_t length,
                         const Tensor& like) {
  check_device(tensor, name, like, "the first argument");
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " has the wrong dtype");
  STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == length, name, " must have ", length,
                  " entries in one dimension");
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
}

// Rows of float8_e4m3fn, contiguous, on the device of `like`.
inline void check_eight_bits(const Tensor& tensor, const char* name, int64_t rows, int64_t columns,
                             const Tensor& like) {
  check_device(tensor, name, like, "the first argument");
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float8_e4m3fn, name,
                  " must be float8_e4m3fn");
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == rows && tensor.size(1) == columns &&
                      tensor.is_contiguous() && begins_at(tensor, 16),
                  name, " must be [", rows, ", ", columns,
                  "], contiguous, and begin at a multiple of 16 bytes");
}

template <typename T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

}  // namespace vllm_diffusion

// Registers `function` as an operator's implementation on one device; the second is empty in a
// build without CUDA. Both stand inside of namespace vllm_diffusion.
#define VLLM_DIFFUSION_CPU_OP(name, function)         \
  STABLE_TORCH_LIBRARY_IMPL(vllm_diffusion, CPU, m) { \
    m.impl(name, TORCH_BOX(function));                \
  }
#ifdef USE_CUDA
#define VLLM_DIFFUSION_CUDA_OP(name, function)         \
  STABLE_TORCH_LIBRARY_IMPL(vllm_diffusion, CUDA, m) { \
    m.impl(name, TORCH_BOX(function));                 \
  }
#else
#define VLLM_DIFFUSION_CUDA_OP(name, function)
#endif
