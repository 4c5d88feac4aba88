// unmask on CUDA: one block per request, one thread per canvas position, or per four of a wide one.
#include "unmask.h"

#include <cuda_runtime.h>

namespace vllm_diffusion {
namespace {

constexpr int kThreads = 1024;

// What a thread knows of its rows: those at threadIdx.x, threadIdx.x + blockDim.x, and so on.
template <int kRows>
struct Rows {
  bool candidate[kRows];
  float key[kRows];     // the higher the earlier; NaN keeps a row out of all comparisons
  int32_t rank[kRows];  // 0 for the best
};

__device__ int32_t position(int j) {
  return static_cast<int32_t>(threadIdx.x + j * blockDim.x);
}

// Rows of the whole block that pass; the same number in every thread. All threads call it.
template <int kRows, typename Passes>
__device__ int32_t count_rows(Passes passes) {
  int32_t count = 0;
#pragma unroll
  for (int j = 0; j < kRows; ++j) count += __syncthreads_count(passes(j));
  return count;
}

// How many keys go before the one at position p, 0 for the best. The warps before this one's win
// ties and those behind it lose them, which leaves one comparison a key.
__device__ int32_t rank_of(const float* keys, int32_t length, float key, int32_t p) {
  const int32_t begin = min(p & ~31, length);
  const int32_t end = min(begin + 32, length);
  int32_t rank = 0;
#pragma unroll 8
  for (int32_t q = 0; q < begin; ++q) rank += keys[q] >= key ? 1 : 0;
#pragma unroll 8
  for (int32_t q = begin; q < end; ++q) rank += keys[q] > key || (keys[q] == key && q < p) ? 1 : 0;
#pragma unroll 8
  for (int32_t q = end; q < length; ++q) rank += keys[q] > key ? 1 : 0;
  return rank;
}

// How many of the ranked candidates the rule unmasks; the same number in every thread. All threads
// call it.
template <int kRows>
__device__ int32_t count_to_unmask(int32_t rule, const Rows<kRows>& rows, int32_t count,
                                   int32_t quota, float threshold, float* by_rank,
                                   int32_t* shared_count) {
  quota = quota < count ? quota : count;
  const auto at_least = [](int32_t a, int32_t b) { return a > b ? a : b; };
  switch (rule) {
    case kStatic:
    case kSequential:
      return quota;
    case kDynamic:
      return at_least(quota, count_rows<kRows>([&](int j) {
                        return rows.candidate[j] && rows.key[j] > threshold;
                      }));
    case kThreshold:
      return at_least(1, count_rows<kRows>(
                             [&](int j) { return rows.candidate[j] && rows.key[j] >= threshold; }));
    case kFactor: {
      if (threadIdx.x == 0) *shared_count = count;
      __syncthreads();
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        if (rows.candidate[j] && !(rows.key[j] >= factor_bar(threshold, rows.rank[j])))
          atomicMin(shared_count, rows.rank[j]);
      }
      __syncthreads();
      return factor_count(*shared_count, count);
    }
    default: {  // kEntropyBounded, whose keys are negated entropies
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        if (rows.candidate[j]) by_rank[rows.rank[j]] = -rows.key[j];
      }
      __syncthreads();
      if (threadIdx.x == 0) {  // in order, as on the CPU: the same rounding
        int32_t n = 0;
        double sum = 0.0;
        for (; n < count; ++n) {
          sum += static_cast<double>(by_rank[n]);
          if (!(sum < static_cast<double>(threshold))) break;
        }
        *shared_count = n;
      }
      __syncthreads();
      return at_least(1, *shared_count);
    }
  }
}

template <int kRows>
__global__ void __launch_bounds__(kThreads) unmask_kernel(UnmaskArgs args) {
  __shared__ float keys[kRows * kThreads];
  __shared__ float by_rank[kRows * kThreads];
  __shared__ int32_t shared_count;

  const int64_t request = blockIdx.x;
  const int64_t first = args.row_start[request];
  const int64_t end = args.row_start[request + 1];
  const int64_t slot = args.slots[request];
  const bool in_range = slot >= 0 && slot < args.num_slots && first >= 0 && end >= first &&
                        end <= args.rows && end - first <= args.width;
  const int32_t rule = in_range ? args.rule[slot] : -1;
  if (rule < 0 || rule >= kUnmaskRules) {
    if (threadIdx.x == 0) args.remaining[request] = -1;
    return;
  }
  const int32_t length = static_cast<int32_t>(end - first);
  const int64_t state = slot * args.width;
  const int32_t step = args.step[slot];
  Rows<kRows> rows;
#pragma unroll
  for (int j = 0; j < kRows; ++j)
    rows.candidate[j] = position(j) < length && args.masked[state + position(j)];
  const int32_t count = count_rows<kRows>([&](int j) { return rows.candidate[j]; });
  if (count == 0) {
    if (threadIdx.x == 0) args.remaining[request] = 0;
    return;
  }

  bool pick[kRows];
  if (rule == kGiven) {
#pragma unroll
    for (int j = 0; j < kRows; ++j)
      pick[j] = rows.candidate[j] && args.picked != nullptr && args.picked[first + position(j)];
  } else {
    // The higher key goes first, ties to the lower position. SEQUENTIAL is one great tie.
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const int64_t row = first + position(j);
      rows.key[j] = NAN;
      if (rows.candidate[j]) {
        rows.key[j] = rule == kSequential       ? 0.0f
                      : rule == kEntropyBounded ? -rank_entropy(args.entropy[row])
                                                : rank_confidence(args.confidence[row]);
      }
      keys[position(j)] = rows.key[j];
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const int32_t p = position(j);
      rows.rank[j] = p < length ? rank_of(keys, length, rows.key[j], p) : 0;
    }
    const int32_t quota = unmask_quota(args.block_length[slot], args.steps[slot], step);
    const int32_t unmask =
        count_to_unmask(rule, rows, count, quota, args.threshold[slot], by_rank, &shared_count);
#pragma unroll
    for (int j = 0; j < kRows; ++j) pick[j] = rows.candidate[j] && rows.rank[j] < unmask;
  }

#pragma unroll
  for (int j = 0; j < kRows; ++j) {
    if (!pick[j]) continue;
    args.canvas[state + position(j)] = args.token[first + position(j)];
    args.masked[state + position(j)] = false;
    args.unmasked_at[state + position(j)] = step;
  }
  // And nobody still reads the step.
  const int32_t unmasked = count_rows<kRows>([&](int j) { return pick[j]; });
  if (threadIdx.x == 0) {
    args.step[slot] = step + 1;
    args.remaining[request] = count - unmasked;
  }
}

}  // namespace

int unmask_cuda(const UnmaskArgs& args, void* stream) {
  const auto blocks = static_cast<unsigned>(args.requests);
  const auto on = static_cast<cudaStream_t>(stream);
  if (args.width <= kThreads) {
    const int whole_warps = static_cast<int>((args.width + 31) / 32 * 32);
    unmask_kernel<1><<<blocks, whole_warps == 0 ? 32 : whole_warps, 0, on>>>(args);
  } else {
    static_assert(kMaxCanvas <= 4 * kThreads);
    unmask_kernel<4><<<blocks, kThreads, 0, on>>>(args);
  }
  return cudaGetLastError();
}

}  // namespace vllm_diffusion
