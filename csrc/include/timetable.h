// timetable: the share of a block's masked positions that a step of Dream's timetable unmasks. The
// Python wrapper (vllm/v1/diffusion/kernels/timetable.py) documents the meaning.
#pragma once

#include <cstdint>

#include "common.h"

namespace vllm_diffusion {

struct TimetableArgs {
  const int32_t* step;   // [requests]
  const int32_t* steps;  // [requests]
  const float* eps;      // [requests]
  int64_t requests;
  float* out;  // [requests]
};

// Products and sums are rounded one by one, as torch.linspace rounds them: fused, a time may differ
// by an ulp, which may change the number of positions that a step unmasks.
VLLM_DIFFUSION_HD double rounded_product(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  const double product = a * b;
  return product;
#endif
}

VLLM_DIFFUSION_HD double rounded_sum(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dadd_rn(a, b);
#else
  const double sum = a + b;
  return sum;
#endif
}

// Entry `index` of torch.linspace(1, eps, steps + 1): either half counts from its own end.
VLLM_DIFFUSION_HD float timetable_time(float eps, int32_t steps, int64_t index) {
  const float gap = (eps - 1.0f) / static_cast<float>(steps);
  const double width = static_cast<double>(gap);
  if (index < (static_cast<int64_t>(steps) + 1) / 2) {
    const double passed = rounded_product(width, static_cast<double>(index));
    return static_cast<float>(rounded_sum(1.0, passed));
  }
  const double left = rounded_product(width, static_cast<double>(steps - index));
  return static_cast<float>(rounded_sum(static_cast<double>(eps), -left));
}

VLLM_DIFFUSION_HD float timetable_share(float eps, int32_t steps, int32_t step) {
  const float now = timetable_time(eps, steps, step);
  const float ratio = timetable_time(eps, steps, static_cast<int64_t>(step) + 1) / now;
  return 1.0f - ratio;
}

void timetable_cpu(const TimetableArgs& args);

// `stream` is a cudaStream_t; returns a cudaError_t. Allocates nothing and does not synchronise.
int timetable_cuda(const TimetableArgs& args, void* stream);

}  // namespace vllm_diffusion
