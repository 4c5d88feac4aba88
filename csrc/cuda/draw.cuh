// The draw's two stages, each by one block; csrc/include/slice.h says what they are.
#pragma once

#include "cuda/loads.cuh"
#include "cuda/reduce.cuh"
#include "slice.h"

namespace vllm_diffusion {

constexpr int kDrawThreads = 128;
constexpr int kDrawWarps = kDrawThreads / kWarp;
constexpr int kDrawVectors = kSliceIds / kVector / kDrawThreads;  // of a thread in a slice
constexpr float kLn2 = 0.693147180559945309417f;

// What a slice leaves for the end of its row; sums relative to max1, the banned id left out.
struct Partial {
  float max1, max2, z, s;
};

struct DrawScratch {
  Draw slice[kDrawWarps], likely[kDrawWarps], id[kDrawWarps];
  float bound[kDrawWarps];
  double mass[2][kDrawWarps];
  int32_t close_count;
  int32_t close[kDrawThreads];
};

// Not inlined: logarithms of float64 are long.
static __device__ __noinline__ double score_of_slice(float max1, double mass, float top,
                                                     float temperature, uint32_t bits) {
  return group_score(max1, mass, top, temperature, bits);
}

static __device__ __noinline__ double score_of_id(float logit, float temperature, uint32_t bits) {
  return gumbel_score(logit, temperature, bits);
}

// The row's slice that is drawn.
template <Dtype kDtype>
__device__ int32_t draw_slice(const Row<kDtype>& row, const Partial* parts, const float* masses,
                              int32_t slices, float top, float temperature, const PhiloxKey& key,
                              DrawScratch& scratch) {
  const auto score = [&](int32_t i, double mass) {
    return score_of_slice(parts[i].max1, mass, top, temperature, philox_word(key, i, kGroupStream));
  };
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  if (thread == 0) scratch.close_count = 0;
  Draw best = {0.0, -1};
  for (int32_t i = thread; i < slices; i += kDrawThreads)
    best = Join()(best, Draw{score(i, static_cast<double>(masses[i])), i});
  const Draw own = best;
  best = block_reduce<kDrawThreads>(best, scratch.slice, Join());

  const double floor = best.score - kDrawMargin;
  if (own.id >= 0 && own.score >= floor) {
    for (int32_t i = thread; i < slices; i += kDrawThreads) {
      if (!(score(i, static_cast<double>(masses[i])) >= floor)) continue;
      const int32_t place = atomicAdd(&scratch.close_count, 1);
      if (place < kDrawThreads) scratch.close[place] = i;
    }
  }
  __syncthreads();
  const int32_t count = scratch.close_count;
  if (count < 2) return static_cast<int32_t>(best.id);

  // Too close: sum these slices again, in float64.
  Draw exact = {0.0, -1};
  for (int32_t c = 0; c < count && c < kDrawThreads; ++c) {
    const int32_t i = scratch.close[c];
    double mass = 0.0;
#pragma unroll 1
    for (int j = 0; j < kDrawVectors; ++j) {
      const Packed<kDtype> vector = row.vector(i, j * kDrawThreads + thread);
#pragma unroll 1
      for (int k = 0; k < kVector; ++k)
        if (vector[k] > -INFINITY)
          mass += exp((static_cast<double>(vector[k]) - parts[i].max1) / temperature);
    }
    // Two places in turn: the next sum begins while others still read this one.
    mass = block_reduce<kDrawThreads>(mass, scratch.mass[c % 2], Plus());
    exact = Join()(exact, Draw{score(i, mass), i});
  }
  return static_cast<int32_t>(exact.id);
}

// No score of an id with logit l and these bits is higher: g = -log(-log1p(-u)) <= -log(u).
// Relative to top / T.
__device__ __forceinline__ float draw_bound(float logit, float top, float inverse, uint32_t bits) {
  const float u = __fmaf_rn(__uint2float_rn(bits), 0x1p-32f, 0x1p-33f);
  return __fmaf_rn(-kLn2, __log2f(u), __fmul_rn(__fsub_rn(logit, top), inverse));
}

// The id of the slice that is drawn; `top` is the slice's highest logit. A bound costs one
// logarithm per id; the exact score, in float64, is computed for the id with the highest bound and
// the few whose bound reaches its score.
template <Dtype kDtype>
__device__ int32_t draw_id(const Row<kDtype>& row, int32_t slice, float top, float temperature,
                           const PhiloxKey& key, DrawScratch& scratch) {
  constexpr float kMargin = 1e-3f;  // far above the rounding of `draw_bound`
  const float inverse = temperature > 1e-30f ? 1.0f / temperature : 1e30f;
  Packed<kDtype> vector[kDrawVectors];
  int32_t first[kDrawVectors];
  uint32_t bits[kDrawVectors][kVector];
  float bound[kDrawVectors][kVector];
  float highest = -INFINITY;
#pragma unroll
  for (int j = 0; j < kDrawVectors; ++j) {
    const int place = j * kDrawThreads + static_cast<int>(threadIdx.x);
    vector[j] = row.vector(slice, place);
    first[j] = row.first_id(slice, place);
#pragma unroll
    for (int half = 0; half < kVector; half += 4)
      philox_block(key, static_cast<uint32_t>(first[j] + half) / 4, bits[j][half],
                   bits[j][half + 1], bits[j][half + 2], bits[j][half + 3]);
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      const float logit = vector[j][k];
      bound[j][k] = logit == -INFINITY ? -INFINITY : draw_bound(logit, top, inverse, bits[j][k]);
      highest = fmaxf(highest, bound[j][k]);
    }
  }
  const auto best_above = [&](float floor) {
    Draw best = {0.0, -1};
#pragma unroll
    for (int j = 0; j < kDrawVectors; ++j) {
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        if (!(bound[j][k] > -INFINITY && bound[j][k] >= floor)) continue;
        const double score = score_of_id(vector[j][k], temperature, bits[j][k]);
        best = Join()(best, Draw{score, first[j] + k});
      }
    }
    return best;
  };
  highest = block_reduce<kDrawThreads>(highest, scratch.bound, Larger());
  const Draw likely = block_reduce<kDrawThreads>(best_above(highest), scratch.likely, Join());
  const double base = static_cast<double>(top) / static_cast<double>(temperature);
  const float floor = static_cast<float>(likely.score - base) - kMargin;
  return static_cast<int32_t>(block_reduce<kDrawThreads>(best_above(floor), scratch.id, Join()).id);
}

}  // namespace vllm_diffusion
