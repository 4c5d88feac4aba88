// row_stats on CUDA: one block per slice of a row reads it once, into registers, and leaves a few
// numbers; one warp per row joins them. Slices are of fixed length, so that a row's result does not
// depend on how many rows there are.
#include "row_stats.h"

#include <cuda_runtime.h>

#include "cuda/draw.cuh"
#include "cuda/loads.cuh"
#include "cuda/reduce.cuh"
#include "slice.h"

namespace vllm_diffusion {
namespace {

constexpr int kSliceIds = kThreads * kVectors * kVector;
constexpr float kLog2E = 1.44269504088896340736f;

struct Partial {
  double score;  // of the draw
  float draw_logit;
  int32_t draw_id;
  int32_t argmax;
  float z, s, max_all, max1, max2;  // as SliceStats
};

// The logits a thread holds: kVectors vectors, kThreads vectors apart.
template <Dtype kDtype>
struct Held {
  Packed<kDtype> vector[kVectors];
  int32_t first;  // id of the first of them

  __device__ __forceinline__ int32_t id(int j, int k) const {
    return first + j * kThreads * kVector + k;
  }
};

// 2^x within 2^-22 relative, one instruction; 0 below -126.
__device__ __forceinline__ float exp2_approx(float x) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}

template <Dtype kDtype>
__global__ void __launch_bounds__(kThreads, kDtype == Dtype::kFloat32 ? 3 : 4)
    slice_kernel(RowStatsArgs args, int slices, Partial* partials) {
  const int64_t row = blockIdx.x / slices;
  const int slice = blockIdx.x % slices;
  if (args.active != nullptr && !args.active[row]) return;

  __shared__ Scratch scratch[5];
  __shared__ Packed<kDtype> parked[kVectors * kThreads];
  __shared__ int32_t argmax;
  __shared__ float banned_shared;
  using T = typename Element<kDtype>::type;
  const T* logits = static_cast<const T*>(args.logits) + row * args.row_stride;
  const int alignment = row_alignment(logits);

  Held<kDtype> held;
  held.first = slice * kSliceIds + static_cast<int32_t>(threadIdx.x) * kVector;
#pragma unroll
  for (int j = 0; j < kVectors; ++j)
    held.vector[j] = load_vector<kDtype>(logits, held.id(j, 0), args.vocab, alignment);
  if (threadIdx.x == 0) {
    argmax = INT32_MAX;
    banned_shared = -INFINITY;
  }
  __syncthreads();

  // The banned id steps aside: it counts in the sums only.
  TopTwo top = {-INFINITY, -INFINITY};
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    const int32_t banned_at = static_cast<int32_t>(args.banned) - held.id(j, 0);
    if (banned_at >= 0 && banned_at < kVector) {
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        if (k != banned_at) continue;
        banned_shared = held.vector[j][k];
        held.vector[j].set(k, -INFINITY);
      }
    }
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      const float x = held.vector[j][k];
      top.second = fmaxf(top.second, fminf(top.first, x));
      top.first = fmaxf(top.first, x);
    }
  }
  const float own_max = top.first;
  top = block_join<kThreads>(top, scratch[0].top);  // its barrier publishes banned_shared
  const float banned_logit = banned_shared;
  const float max_all = fmaxf(top.first, banned_logit);

  if (own_max == top.first && top.first > -INFINITY) {
    int32_t lowest = INT32_MAX;
#pragma unroll
    for (int j = kVectors - 1; j >= 0; --j) {
#pragma unroll
      for (int k = kVector - 1; k >= 0; --k)
        if (held.vector[j][k] == top.first) lowest = held.id(j, k);
    }
    atomicMin(&argmax, lowest);
  }

  // Below, x counts in powers of two. A NaN logit makes e and thus z NaN.
  const float scale = exponent_scale(args.stat_temperature[row]) * kLog2E;
  const float base = max_all == -INFINITY ? 0.0f : max_all;
  Sums sums = {0.0f, 0.0f};
  const auto add = [&](float logit) {
    const float x = (logit - base) * scale;
    const float e = exp2_approx(x);
    sums.z += e;
    sums.s += e * fmaxf(x, -160.0f);  // e is 0 below: not 0 * -inf
  };
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
#pragma unroll
    for (int k = 0; k < kVector; ++k) add(held.vector[j][k]);
  }
  if (threadIdx.x == 0 && banned_logit != -INFINITY) add(banned_logit);
  sums = block_join<kThreads>(sums, scratch[1].sums);  // its barrier publishes argmax

  const float temperature = args.temperature[row];
  Candidate drawn = {{0.0, -1}, -INFINITY};
  if (temperature > 0.0f && top.first > -INFINITY) {
    // Each thread reads back only what it wrote: no barrier.
#pragma unroll
    for (int j = 0; j < kVectors; ++j) parked[j * kThreads + threadIdx.x] = held.vector[j];
    drawn = draw(parked, held.first, philox_key(args.seed[row], args.offset[row]), temperature,
                 top.first, scratch + 2);
  }

  if (threadIdx.x == 0) {
    Partial out;
    out.score = drawn.draw.score;
    out.draw_logit = drawn.logit;
    out.draw_id = static_cast<int32_t>(drawn.draw.id);
    out.argmax = argmax;
    out.z = sums.z;
    out.s = sums.s * kLn2;
    out.max_all = max_all;
    out.max1 = top.first;
    out.max2 = top.second;
    partials[static_cast<int64_t>(blockIdx.x)] = out;
  }
}

__device__ __forceinline__ SliceStats stats_of(const Partial& part) {
  return {static_cast<double>(part.z), static_cast<double>(part.s), part.max_all, part.max1,
          part.max2};
}

template <typename T, typename Combine>
__device__ __forceinline__ T warp_fold(T value, Combine combine) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2)
    value = combine(value, __shfl_xor_sync(kFullMask, value, step));
  return value;
}

// One warp joins the slices of one row and writes the outputs.
__global__ void finish_kernel(RowStatsArgs args, int slices, const Partial* partials) {
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (row >= args.rows) return;
  if (args.active != nullptr && !args.active[row]) {
    if (lane == 0) {
      args.argmax[row] = args.sample[row] = -1;
      args.sample_prob[row] = args.top1[row] = args.top2[row] = 0.0f;
      args.entropy[row] = args.lse[row] = 0.0f;
    }
    return;
  }
  const Partial* mine = partials + row * slices;
  const double inverse = inverse_temperature(args.stat_temperature[row]);

  SliceStats all = empty_slice();
  for (int i = lane; i < slices; i += kWarp) join_maxima(all, stats_of(mine[i]));
  const TopTwo top = warp_join(TopTwo{all.max1, all.max2});
  all.max1 = top.first;
  all.max2 = top.second;
  all.max_all = warp_join(all.max_all);

  int32_t argmax = INT32_MAX;
  Candidate drawn = {{0.0, -1}, -INFINITY};
  for (int i = lane; i < slices; i += kWarp) {
    const Partial part = mine[i];
    add_sums(all, stats_of(part), inverse);
    if (part.max1 == all.max1 && part.argmax < argmax) argmax = part.argmax;
    drawn = join(drawn, Candidate{{part.score, part.draw_id}, part.draw_logit});
  }
  const auto plus = [](double a, double b) { return a + b; };
  all.z = warp_fold(all.z, plus);
  all.s = warp_fold(all.s, plus);
  argmax = warp_fold(argmax, [](int32_t a, int32_t b) { return a < b ? a : b; });
  drawn = warp_join(drawn);
  if (lane != 0) return;

  const RowSummary summary = summarize(all, inverse);
  const bool choosable = usable(summary) && all.max1 > -INFINITY;
  args.argmax[row] = choosable ? argmax : fallback_id(args.banned);
  args.top1[row] = probability(summary, all.max1);
  args.top2[row] = probability(summary, all.max2);
  const bool draws = choosable && drawn.draw.id >= 0;
  args.sample[row] = draws ? drawn.draw.id : args.argmax[row];
  args.sample_prob[row] = draws ? probability(summary, drawn.logit) : args.top1[row];
  args.entropy[row] = entropy(summary, all);
  args.lse[row] = log_sum_exp(summary);
}

int64_t slices_of(int64_t vocab) {
  return (vocab + kSliceIds - 1) / kSliceIds;
}

}  // namespace

int64_t row_stats_cuda_scratch(int64_t rows, int64_t vocab) {
  return rows * slices_of(vocab) * static_cast<int64_t>(sizeof(Partial));
}

int row_stats_cuda(const RowStatsArgs& args, void* scratch, void* stream) {
  const int64_t slices = slices_of(args.vocab);
  const int64_t blocks = args.rows * slices;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const auto on = static_cast<cudaStream_t>(stream);
  Partial* partials = static_cast<Partial*>(scratch);
  const auto launch = [&](auto kernel) {
    kernel<<<static_cast<unsigned>(blocks), kThreads, 0, on>>>(args, static_cast<int>(slices),
                                                               partials);
  };
  switch (args.dtype) {
    case Dtype::kFloat32:
      launch(slice_kernel<Dtype::kFloat32>);
      break;
    case Dtype::kFloat16:
      launch(slice_kernel<Dtype::kFloat16>);
      break;
    case Dtype::kBFloat16:
      launch(slice_kernel<Dtype::kBFloat16>);
      break;
  }
  constexpr int kRowsPerBlock = 4;
  const int64_t finish_blocks = (args.rows + kRowsPerBlock - 1) / kRowsPerBlock;
  finish_kernel<<<static_cast<unsigned>(finish_blocks), kRowsPerBlock * kWarp, 0, on>>>(
      args, static_cast<int>(slices), partials);
  return cudaGetLastError();
}

}  // namespace vllm_diffusion
