// Numbers of 8 bits, float8_e4m3fn, and the scale that a row of them gets.
#pragma once

#include <cuda_fp8.h>

#include <cstdint>

#include "cuda/reduce.cuh"

namespace vllm_diffusion {

constexpr float kE4m3Largest = 448.0f;
// A row of smaller numbers is not stretched any further: upstream's bound.
constexpr float kSmallestScale = 1.0f / (kE4m3Largest * 512.0f);

// Two numbers, rounded to the nearest; what is too large becomes the largest.
__device__ __forceinline__ uint16_t pack_e4m3(float low, float high) {
  return __nv_cvt_float2_to_fp8x2(make_float2(low, high), __NV_SATFINITE, __NV_E4M3);
}

__device__ __forceinline__ float row_scale(float largest) {
  return fmaxf(largest / kE4m3Largest, kSmallestScale);
}

// The largest of a block's numbers, none of them below 0, to all of its threads; `scratch` has a
// place for every warp and is used once.
__device__ __forceinline__ float block_largest(float value, float* scratch) {
  value = warp_reduce(value, Larger());
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = 0.0f;
  for (int warp = 0; warp < static_cast<int>(blockDim.x) / kWarp; ++warp)
    value = fmaxf(value, scratch[warp]);
  return value;
}

}  // namespace vllm_diffusion
