// Reductions in a fixed tree: every thread gets the result.
#pragma once

#include "philox.h"

namespace vllm_diffusion {

constexpr int kWarp = 32;
constexpr unsigned kFullMask = 0xffffffffu;

struct TopTwo {
  float first, second;
};

__device__ __forceinline__ TopTwo shuffle(const TopTwo& value, int step) {
  return {__shfl_xor_sync(kFullMask, value.first, step),
          __shfl_xor_sync(kFullMask, value.second, step)};
}

__device__ __forceinline__ Draw shuffle(const Draw& value, int step) {
  return {__shfl_xor_sync(kFullMask, value.score, step),
          __shfl_xor_sync(kFullMask, value.id, step)};
}

template <typename T>
__device__ __forceinline__ T shuffle(const T& value, int step) {
  return __shfl_xor_sync(kFullMask, value, step);
}

// What is reduced with; each must be associative up to rounding.
struct Plus {
  template <typename T>
  __device__ __forceinline__ T operator()(const T& a, const T& b) const {
    return a + b;
  }
};

struct Larger {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

struct Smaller {
  __device__ __forceinline__ int32_t operator()(int32_t a, int32_t b) const {
    return a < b ? a : b;
  }
};

struct Join {
  __device__ __forceinline__ TopTwo operator()(const TopTwo& a, const TopTwo& b) const {
    return {fmaxf(a.first, b.first), fmaxf(fminf(a.first, b.first), fmaxf(a.second, b.second))};
  }
  __device__ __forceinline__ Draw operator()(const Draw& a, const Draw& b) const {
    return b.id >= 0 && draw_wins(b.score, b.id, a) ? b : a;
  }
};

template <typename T, typename Combine>
__device__ __forceinline__ T warp_reduce(T value, Combine combine) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value = combine(value, shuffle(value, step));
  return value;
}

// `scratch` has a place for every warp and is used once.
template <int kThreads, typename T, typename Combine>
__device__ __forceinline__ T block_reduce(T value, T* scratch, Combine combine) {
  value = warp_reduce(value, combine);
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  T out = scratch[0];
#pragma unroll
  for (int warp = 1; warp < kThreads / kWarp; ++warp) out = combine(out, scratch[warp]);
  return out;
}

}  // namespace vllm_diffusion
