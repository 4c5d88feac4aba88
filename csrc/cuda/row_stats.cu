// row_stats on CUDA. Every warp reads a slice of a row once, into registers, and leaves a few
// numbers; then a block per row joins them, finds the ids and draws. Slices are of fixed length,
// so that a row's result does not depend on how many rows there are.
#include "row_stats.h"

#include <cuda_runtime.h>

#include "cuda/draw.cuh"
#include "cuda/launch.cuh"
#include "cuda/loads.cuh"
#include "cuda/mma.cuh"
#include "cuda/reduce.cuh"
#include "slice.h"

namespace vllm_diffusion {
namespace {

constexpr int kSliceWarps = 4;
constexpr float kLog2E = 1.44269504088896340736f;

template <Dtype kDtype>
__device__ __forceinline__ Row<kDtype> row_of(const RowStatsArgs& args, int64_t row) {
  using T = typename Element<kDtype>::type;
  const T* logits = static_cast<const T*>(args.logits) + row * args.row_stride;
  return {logits, static_cast<int32_t>(args.vocab), static_cast<int32_t>(args.banned),
          row_alignment(logits)};
}

// The two highest of the lane's logits. 16-bit ones are compared in pairs.
template <Dtype kDtype>
__device__ __forceinline__ TopTwo top_two(const Packed<kDtype> (&held)[kVectors]) {
  TopTwo out = {-INFINITY, -INFINITY};
  if constexpr (kDtype == Dtype::kFloat32) {
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
#pragma unroll
      for (int k = 0; k < kVector; ++k) out = Join()(out, TopTwo{held[j][k], -INFINITY});
    }
  } else {
    using Pair = typename Element<kDtype>::pair;
    Packed<kDtype> top;
    top.set(0, -INFINITY);
    top.set(1, -INFINITY);
    Pair first = top.pair(0), second = first;
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
#pragma unroll
      for (int k = 0; k < kVector; k += 2) {
        const Pair x = held[j].pair(k);
        second = __hmax2(second, __hmin2(first, x));
        first = __hmax2(first, x);
      }
    }
    top.set_pair(0, first);
    top.set_pair(2, second);
    out = Join()(TopTwo{top[0], top[2]}, TopTwo{top[1], top[3]});
  }
  return out;
}

template <Dtype kDtype>
__global__ void __launch_bounds__(kSliceWarps* kWarp, kDtype == Dtype::kFloat32 ? 4 : 6)
    slice_kernel(RowStatsArgs args, int32_t slices, int64_t units, Partial* partials,
                 float* masses) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
  const int64_t unit =
      static_cast<int64_t>(blockIdx.x) * kSliceWarps + static_cast<int64_t>(threadIdx.x) / kWarp;
  if (unit >= units) return;
  const int64_t row = unit / slices;
  const int32_t slice = static_cast<int32_t>(unit - row * slices);
  if (args.active != nullptr && !args.active[row]) return;

  Packed<kDtype> held[kVectors];
  row_of<kDtype>(args, row).load(slice, held);
  const float temperature = args.temperature[row];
  const float scale = exponent_scale(args.stat_temperature[row]) * kLog2E;
  const TopTwo top = warp_reduce(top_two<kDtype>(held), Join());

  // x counts in powers of two. A NaN logit makes e and thus z NaN.
  const float base = top.first == -INFINITY ? 0.0f : top.first;
  float z = 0.0f, s = 0.0f;
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      const float x = (held[j][k] - base) * scale;
      const float e = exp2_approx(x);
      z += e;
      s += e * fmaxf(x, -160.0f);  // e is 0 below: not 0 * -inf
    }
  }
  z = warp_reduce(z, Plus());
  s = warp_reduce(s, Plus());

  float mass = 0.0f;
  if (temperature > 0.0f && top.first > -INFINITY) {
    const float draw_scale = exponent_scale(temperature) * kLog2E;
    mass = z;
    if (draw_scale != scale) {
      mass = 0.0f;
#pragma unroll
      for (int j = 0; j < kVectors; ++j) {
#pragma unroll
        for (int k = 0; k < kVector; ++k)
          mass += exp2_approx(fmaxf((held[j][k] - base) * draw_scale, -160.0f));
      }
      mass = warp_reduce(mass, Plus());
    }
  }
  if (threadIdx.x % kWarp == 0) {
    *reinterpret_cast<float4*>(partials + unit) = make_float4(top.first, top.second, z, s * kLn2);
    masses[unit] = mass;
  }
}

__device__ __forceinline__ SliceStats stats_of(const Partial& part) {
  SliceStats out = empty_slice();
  out.z = static_cast<double>(part.z);
  out.s = static_cast<double>(part.s);
  out.max_all = out.max1 = part.max1;
  out.max2 = part.max2;
  return out;
}

// The banned id, which counts in the sums only.
template <Dtype kDtype>
__device__ __forceinline__ SliceStats banned_stats(const Row<kDtype>& row) {
  SliceStats out = empty_slice();
  if (row.banned < 0) return out;
  const float logit = row.at(row.banned);
  if (logit == -INFINITY) return out;
  out.z = logit == logit ? 1.0 : static_cast<double>(NAN);
  if (logit == logit) out.max_all = logit;
  return out;
}

// One block joins the slices of one row and writes the outputs.
template <Dtype kDtype>
__global__ void __launch_bounds__(kDrawThreads, 6)
    finish_kernel(RowStatsArgs args, int32_t slices, const Partial* partials, const float* masses) {
  __shared__ struct {
    TopTwo top[kDrawWarps];
    double z[kDrawWarps], s[kDrawWarps];
    int32_t slice[kDrawWarps], id[kDrawWarps];
    DrawScratch draw;
  } scratch;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
  const int64_t row = blockIdx.x;
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  if (args.active != nullptr && !args.active[row]) {
    if (thread == 0) {
      args.sample[row] = -1;
      args.sample_prob[row] = args.top1[row] = args.top2[row] = 0.0f;
      args.entropy[row] = args.lse[row] = 0.0f;
    }
    return;
  }
  const Row<kDtype> logits = row_of<kDtype>(args, row);
  const Partial* mine = partials + row * slices;
  const float temperature = args.temperature[row];
  const double inverse = inverse_temperature(args.stat_temperature[row]);
  const SliceStats banned = banned_stats(logits);

  SliceStats all = empty_slice();
  for (int32_t i = thread; i < slices; i += kDrawThreads) join_maxima(all, stats_of(mine[i]));
  const TopTwo top = block_reduce<kDrawThreads>(TopTwo{all.max1, all.max2}, scratch.top, Join());
  all.max1 = top.first;
  all.max2 = top.second;
  all.max_all = fmaxf(top.first, banned.max_all);

  int32_t slice = INT32_MAX;  // the first that holds the highest logit
  for (int32_t i = thread; i < slices; i += kDrawThreads) {
    add_sums(all, stats_of(mine[i]), inverse);
    if (mine[i].max1 == all.max1 && i < slice) slice = i;
  }
  if (thread == 0) add_sums(all, banned, inverse);
  all.s = block_reduce<kDrawThreads>(all.s, scratch.s, Plus());
  all.z = block_reduce<kDrawThreads>(all.z, scratch.z, Plus());
  slice = block_reduce<kDrawThreads>(slice, scratch.slice, Smaller());

  int32_t sample = static_cast<int32_t>(fallback_id(args.banned));
  float sampled = all.max1;
  if (is_choosable(all, inverse)) {
    int32_t lowest = INT32_MAX;
#pragma unroll
    for (int j = kDrawVectors - 1; j >= 0; --j) {
      const int32_t place = j * kDrawThreads + thread;
      const Packed<kDtype> vector = logits.vector(slice, place);
#pragma unroll
      for (int k = kVector - 1; k >= 0; --k)
        if (vector[k] == all.max1) lowest = logits.first_id(slice, place) + k;
    }
    sample = block_reduce<kDrawThreads>(lowest, scratch.id, Smaller());
    if (temperature > 0.0f) {
      const PhiloxKey key = philox_key(args.seed[row], args.offset[row]);
      slice = draw_slice(logits, mine, masses + row * slices, slices, all.max1, temperature, key,
                         scratch.draw);
      sample = draw_id(logits, slice, mine[slice].max1, temperature, key, scratch.draw);
      sampled = logits.at(sample);
    }
  }
  // A warp each: logarithms and exponentials of float64 are slow.
  if (thread % kWarp != 0) return;
  const RowSummary summary = summarize(all, inverse);
  switch (thread / kWarp) {
    case 0:
      args.sample[row] = sample;
      args.entropy[row] = entropy(summary, all);
      args.lse[row] = log_sum_exp(summary);
      break;
    case 1:
      args.top1[row] = probability(summary, all.max1);
      break;
    case 2:
      args.top2[row] = probability(summary, all.max2);
      break;
    default:
      args.sample_prob[row] = probability(summary, sampled);
  }
}

int64_t slices_of(int64_t vocab) {
  return (vocab + kSliceIds - 1) / kSliceIds;
}

template <Dtype kDtype>
cudaError_t launch(const RowStatsArgs& args, void* scratch, cudaStream_t stream) {
  const int64_t slices = slices_of(args.vocab), units = args.rows * slices;
  const int64_t blocks = (units + kSliceWarps - 1) / kSliceWarps;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  Partial* partials = static_cast<Partial*>(scratch);
  float* masses = reinterpret_cast<float*>(partials + units);
  slice_kernel<kDtype><<<static_cast<unsigned>(blocks), kSliceWarps * kWarp, 0, stream>>>(
      args, static_cast<int32_t>(slices), units, partials, masses);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  return launch_close_behind(finish_kernel<kDtype>, dim3(static_cast<unsigned>(args.rows)),
                             kDrawThreads, 0, stream, args, static_cast<int32_t>(slices), partials,
                             masses);
}

}  // namespace

int64_t row_stats_cuda_scratch(int64_t rows, int64_t vocab) {
  return rows * slices_of(vocab) * static_cast<int64_t>(sizeof(Partial) + sizeof(float));
}

int row_stats_cuda(const RowStatsArgs& args, void* scratch, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  switch (args.dtype) {
    case Dtype::kFloat32:
      return launch<Dtype::kFloat32>(args, scratch, on);
    case Dtype::kFloat16:
      return launch<Dtype::kFloat16>(args, scratch, on);
    case Dtype::kBFloat16:
      return launch<Dtype::kBFloat16>(args, scratch, on);
  }
  return cudaErrorInvalidValue;
}

}  // namespace vllm_diffusion
