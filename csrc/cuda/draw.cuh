// The Gumbel-max draw over one slice of a row, by one block.
#pragma once

#include "cuda/loads.cuh"
#include "cuda/reduce.cuh"
#include "philox.h"

namespace vllm_diffusion {

constexpr int kThreads = 256;
constexpr int kVectors = 4;  // per thread
constexpr float kLn2 = 0.693147180559945309417f;
constexpr float kMargin = 1e-3f;  // far above the rounding of `draw_bound`

// What a block's reductions share; each one has its own.
union Scratch {
  TopTwo top[kThreads / kWarp];
  Sums sums[kThreads / kWarp];
  float bound[kThreads / kWarp];
  Candidate draw[kThreads / kWarp];
};

// No score of an id with logit l and these bits is higher: g = -log(-log1p(-u)) <= -log(u).
// Relative to top / T. One logarithm of the special-function unit.
__device__ __forceinline__ float draw_bound(float logit, float top, float inverse, uint32_t bits) {
  const float u = __fmaf_rn(__uint2float_rn(bits), 0x1p-32f, 0x1p-33f);
  // Spelt out, so that every place this is inlined to rounds alike.
  return __fmaf_rn(-kLn2, __log2f(u), __fmul_rn(__fsub_rn(logit, top), inverse));
}

static __device__ __noinline__ double exact_score(float logit, float temperature, uint32_t bits) {
  return gumbel_score(logit, temperature, bits);
}

// Calls visit(id, logit, bits) for each id the thread holds. Reads them from shared memory, a
// vector at a time: unrolled over registers, this took 255 of them.
template <Dtype kDtype, typename F>
__device__ __forceinline__ void for_each_bits(const Packed<kDtype>* parked, int32_t first,
                                              const PhiloxKey& key, F visit) {
#pragma unroll 1
  for (int j = 0; j < kVectors; ++j) {
    const int32_t id = first + j * kThreads * kVector;
    const Packed<kDtype> vector = parked[j * kThreads + threadIdx.x];
#pragma unroll
    for (int half = 0; half < kVector; half += 4) {
      uint32_t bits[4];
      philox_block(key, static_cast<uint32_t>(id + half) / 4, bits[0], bits[1], bits[2], bits[3]);
#pragma unroll
      for (int w = 0; w < 4; ++w) visit(id + half + w, vector[half + w], bits[w]);
    }
  }
}

// The Gumbel-max draw over the slice. A bound costs one logarithm per id; the exact score, in
// float64, is computed for the id with the highest bound and the few whose bound reaches its score.
template <Dtype kDtype>
__device__ Candidate draw(const Packed<kDtype>* parked, int32_t first, const PhiloxKey& key,
                          float temperature, float top, Scratch* scratch) {
  const float inverse = temperature > 1e-30f ? 1.0f / temperature : 1e30f;
  float bound = -INFINITY;
  for_each_bits(parked, first, key, [&](int32_t, float logit, uint32_t bits) {
    bound = fmaxf(bound, draw_bound(logit, top, inverse, bits));
  });
  const float highest = block_join<kThreads>(bound, scratch[0].bound);

  // First pass: the exact score of the id with the highest bound. Second: whoever may beat it.
  Candidate best = {{0.0, -1}, -INFINITY};
  float floor = highest;
#pragma unroll 1
  for (int pass = 0; pass < 2; ++pass) {
    if (bound >= floor) {
      for_each_bits(parked, first, key, [&](int32_t id, float logit, uint32_t bits) {
        if (logit == -INFINITY || !(draw_bound(logit, top, inverse, bits) >= floor)) return;
        const double score = exact_score(logit, temperature, bits);
        if (draw_wins(score, id, best.draw)) best = {{score, id}, logit};
      });
    }
    best = block_join<kThreads>(best, scratch[1 + pass].draw);
    const double base = static_cast<double>(top) / static_cast<double>(temperature);
    floor = static_cast<float>(best.draw.score - base) - kMargin;
  }
  return best;
}

}  // namespace vllm_diffusion
