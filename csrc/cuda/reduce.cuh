// Reductions over a block, in an order that depends on the block's size only.
#pragma once

#include "philox.h"

namespace vllm_diffusion {

constexpr int kWarp = 32;
constexpr unsigned kFullMask = 0xffffffffu;

// Combines one value per thread; every thread gets the result. `scratch` holds one value per warp
// and may be reused after the next barrier. `combine` must be associative up to rounding and is
// applied in a fixed tree.
template <int kThreads, typename T, typename Shuffle, typename Combine>
__device__ __forceinline__ T block_reduce(T value, T* scratch, Shuffle shuffle, Combine combine) {
  constexpr int kWarps = kThreads / kWarp;
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value = combine(value, shuffle(value, step));
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  T out = scratch[0];
#pragma unroll
  for (int warp = 1; warp < kWarps; ++warp) out = combine(out, scratch[warp]);
  return out;
}

struct TopTwo {
  float first, second;
};

__device__ __forceinline__ TopTwo join(const TopTwo& a, const TopTwo& b) {
  return {fmaxf(a.first, b.first), fmaxf(fminf(a.first, b.first), fmaxf(a.second, b.second))};
}

__device__ __forceinline__ TopTwo shuffle(const TopTwo& value, int step) {
  return {__shfl_xor_sync(kFullMask, value.first, step),
          __shfl_xor_sync(kFullMask, value.second, step)};
}

struct Sums {
  float z, s;
};

__device__ __forceinline__ Sums join(const Sums& a, const Sums& b) {
  return {a.z + b.z, a.s + b.s};
}

__device__ __forceinline__ Sums shuffle(const Sums& value, int step) {
  return {__shfl_xor_sync(kFullMask, value.z, step), __shfl_xor_sync(kFullMask, value.s, step)};
}

// A drawn id with its logit.
struct Candidate {
  Draw draw;
  float logit;
};

__device__ __forceinline__ Candidate join(const Candidate& a, const Candidate& b) {
  if (b.draw.id < 0) return a;
  return draw_wins(b.draw.score, b.draw.id, a.draw) ? b : a;
}

__device__ __forceinline__ Candidate shuffle(const Candidate& value, int step) {
  return {{__shfl_xor_sync(kFullMask, value.draw.score, step),
           __shfl_xor_sync(kFullMask, value.draw.id, step)},
          __shfl_xor_sync(kFullMask, value.logit, step)};
}

__device__ __forceinline__ float join(float a, float b) {
  return fmaxf(a, b);
}

__device__ __forceinline__ float shuffle(float value, int step) {
  return __shfl_xor_sync(kFullMask, value, step);
}

template <int kThreads, typename T>
__device__ __forceinline__ T block_join(T value, T* scratch) {
  return block_reduce<kThreads>(
      value, scratch, [](const T& v, int step) { return shuffle(v, step); },
      [](const T& a, const T& b) { return join(a, b); });
}

template <typename T>
__device__ __forceinline__ T warp_join(T value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value = join(value, shuffle(value, step));
  return value;
}

}  // namespace vllm_diffusion
