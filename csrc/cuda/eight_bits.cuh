// Numbers of 8 bits, float8_e4m3fn, and the scale that a row of them gets.
#pragma once

#include <cuda_fp8.h>

#include <cstdint>

#include "cuda/mma.cuh"
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

// Quotients by one positive scale: those of a division, rounded once, at the cost of five products.
class Quotient {
 public:
  __device__ __forceinline__ explicit Quotient(float scale)
      : scale_(scale), inverse_(1.0f / scale) {}

  __device__ __forceinline__ float of(float x) const {
    float out = x * inverse_;
#pragma unroll
    for (int i = 0; i < 2; ++i) out = fmaf(fmaf(-out, scale_, x), inverse_, out);
    return copysignf(out, x);  // of 0, which has a sign too
  }

 private:
  const float scale_, inverse_;
};

// Eight numbers of 16 bits, divided and rounded to 8.
template <Dtype kDtype>
__device__ __forceinline__ uint2 quantized(const uint32_t (&words)[4], const Quotient& quotient) {
  uint32_t halves[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = unpack<kDtype>(words[i]);
    halves[i] = pack_e4m3(quotient.of(pair.x), quotient.of(pair.y));
  }
  return make_uint2(halves[0] | halves[1] << 16, halves[2] | halves[3] << 16);
}

template <Dtype kDtype>
__device__ __forceinline__ float largest_of(const uint32_t (&words)[4]) {
  float largest = 0.0f;
#pragma unroll
  for (const uint32_t word : words) {
    const float2 pair = unpack<kDtype>(word);
    largest = fmaxf(largest, fmaxf(fabsf(pair.x), fabsf(pair.y)));
  }
  return largest;
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
