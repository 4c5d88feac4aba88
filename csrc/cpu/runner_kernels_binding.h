// What the bindings of the runner's kernels share: checked views of tensors.
#pragma once

#include "binding.h"
#include "runner_kernels.h"
#include "runner_sampling.h"

namespace vllm_diffusion {

inline void check_problem(const char* op, const char* problem) {
  STD_TORCH_CHECK(problem == nullptr, op, ": ", problem);
}

// A number of elements, of sizes and strides that a caller gave; none of them may be negative.
inline int64_t product(int64_t a, int64_t b) {
  int64_t result = 0;
  STD_TORCH_CHECK(a >= 0 && b >= 0 && !__builtin_mul_overflow(a, b, &result),
                  "a size or stride is out of range: ", a, " x ", b);
  return result;
}

inline bool is_wide(const Tensor& tensor, const char* name) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Long || type == ScalarType::Int, name,
                  " must be int32 or int64");
  return type == ScalarType::Long;
}

// Any contiguous int32 or int64 tensor, seen as a vector.
inline Ints ints(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
  return {tensor.data_ptr(), tensor.numel(), is_wide(tensor, name)};
}

inline Ints ints(const std::optional<Tensor>& tensor, const char* name) {
  return tensor ? ints(*tensor, name) : Ints{};
}

// A matrix of int32 or int64 whose rows are contiguous.
inline IntRows int_rows(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 2, name, " must have two dimensions");
  const int64_t rows = tensor.size(0);
  const int64_t cols = tensor.size(1);
  const int64_t stride = tensor.stride(0);
  STD_TORCH_CHECK(cols <= 1 || tensor.stride(1) == 1, name, " must have contiguous rows");
  const int64_t size = rows > 0 ? (rows - 1) * stride + cols : 0;
  return {{tensor.data_ptr(), size, is_wide(tensor, name)}, rows, cols, stride};
}

inline IntRows int_rows(const std::optional<Tensor>& tensor, const char* name) {
  return tensor ? int_rows(*tensor, name) : IntRows{};
}

// A contiguous tensor of one type with at least `length` elements.
template <typename T>
T* array(const Tensor& tensor, const char* name, ScalarType type, int64_t length) {
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " has the wrong dtype");
  STD_TORCH_CHECK(tensor.is_contiguous() && tensor.numel() >= length, name,
                  " must be contiguous with at least ", length, " elements");
  return static_cast<T*>(tensor.data_ptr());
}

inline const float* floats(const Tensor& tensor, const char* name, int64_t length = 0) {
  return array<const float>(tensor, name, ScalarType::Float, length);
}

inline Logits logits(const Tensor& tensor, int64_t vocab) {
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(1) >= vocab && tensor.stride(1) == 1,
                  "logits must be [rows, vocabulary] with contiguous rows");
  const Dtype dtype = float_dtype(tensor, "logits");
  return {tensor.data_ptr(), dtype, tensor.size(0), vocab, tensor.stride(0)};
}

// The sampler works in place on a float32 copy.
inline Logits float_logits(const Tensor& tensor, int64_t vocab) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float, "logits must be float32");
  return logits(tensor, vocab);
}

}  // namespace vllm_diffusion
