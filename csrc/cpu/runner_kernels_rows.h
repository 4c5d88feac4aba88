// Walking over rows of logits, slice by slice in float32.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "runner_sampling.h"

namespace vllm_diffusion {

constexpr int64_t kRowSlice = 1024;
constexpr int64_t kRowLanes = 16;  // independent partial results of a reduction

struct RowBuffer {
  alignas(64) float at[kRowSlice];
};

[[maybe_unused]] static inline float bits_as_float(uint32_t bits) {
  float out;
  std::memcpy(&out, &bits, sizeof(out));
  return out;
}

[[maybe_unused]] static inline float widen(uint16_t half, Dtype dtype) {
  const uint32_t wide = half;
  if (dtype == Dtype::kBFloat16) return bits_as_float(wide << 16);
  const uint32_t body = (wide & 0x7fffu) << 13;
  const float magnitude =
      body >= 0x0f800000u ? bits_as_float(body | 0x7f800000u) : bits_as_float(body) * 0x1p112f;
  return (wide & 0x8000u) ? -magnitude : magnitude;
}

[[maybe_unused]] static inline float logit_at(const Logits& logits, int64_t row, int64_t id) {
  const int64_t at = row * logits.stride + id;
  if (logits.dtype == Dtype::kFloat32) return static_cast<const float*>(logits.data)[at];
  return widen(static_cast<const uint16_t*>(logits.data)[at], logits.dtype);
}

// Logits [begin, begin + count) of a row; `count` is at most kRowSlice. Float32 is not copied.
[[maybe_unused]] static const float* slice_of(const Logits& logits, int64_t row, int64_t begin,
                                              int64_t count, RowBuffer& buffer) {
  const int64_t at = row * logits.stride + begin;
  if (logits.dtype == Dtype::kFloat32) return static_cast<const float*>(logits.data) + at;
  const uint16_t* from = static_cast<const uint16_t*>(logits.data) + at;
  if (logits.dtype == Dtype::kBFloat16) {
    for (int64_t i = 0; i < count; ++i) buffer.at[i] = widen(from[i], Dtype::kBFloat16);
  } else {
    for (int64_t i = 0; i < count; ++i) buffer.at[i] = widen(from[i], Dtype::kFloat16);
  }
  return buffer.at;
}

// Calls body(values, begin, count) for each slice of a row.
template <typename F>
void for_slices(const Logits& logits, int64_t row, F body) {
  RowBuffer buffer;
  for (int64_t begin = 0; begin < logits.vocab; begin += kRowSlice) {
    const int64_t count = std::min(kRowSlice, logits.vocab - begin);
    body(slice_of(logits, row, begin, count, buffer), begin, count);
  }
}

// Highest logit of a row; NaN never wins. In lanes, which compilers keep in vectors.
[[maybe_unused]] static float row_max(const Logits& logits, int64_t row) {
  float lanes[kRowLanes];
  std::fill(lanes, lanes + kRowLanes, -INFINITY);
  for_slices(logits, row, [&](const float* x, int64_t, int64_t count) {
    int64_t i = 0;
    for (; i + kRowLanes <= count; i += kRowLanes) {
      for (int64_t k = 0; k < kRowLanes; ++k) lanes[k] = x[i + k] > lanes[k] ? x[i + k] : lanes[k];
    }
    for (; i < count; ++i) lanes[0] = x[i] > lanes[0] ? x[i] : lanes[0];
  });
  return *std::max_element(lanes, lanes + kRowLanes);
}

// Calls body(row) for each row, on threads if the logits are many. The first problem is returned.
template <typename F>
const char* for_rows(const Logits& logits, const Parallel& parallel, F body) {
  std::atomic<const char*> problem{nullptr};
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, logits.vocab));
  auto range = [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      if (const char* found = body(row)) problem = found;
    }
  };
  if (logits.rows <= grain) {
    range(0, logits.rows);
  } else {
    parallel_for(parallel, logits.rows, grain, range);
  }
  return problem;
}

constexpr const char* kSlotProblem = "a request's slot is out of range";
constexpr const char* kTokenProblem = "a token id is out of range";
constexpr const char* kRowsProblem = "an argument has fewer rows than the logits";

}  // namespace vllm_diffusion
