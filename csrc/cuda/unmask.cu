// unmask on CUDA: one block per request, one thread per canvas position.
#include "unmask.h"

#include <cuda_runtime.h>

namespace vllm_diffusion {
namespace {

// How many of the ranked candidates the rule settles; the same number in every thread. All threads
// call it. `key`: what ranks this thread's row; `rank`: its place, 0 for the best.
__device__ int32_t count_to_settle(int32_t rule, bool candidate, float key, int32_t rank,
                                   int32_t count, int32_t quota, float threshold, float* by_rank,
                                   int32_t* shared_count) {
  quota = quota < count ? quota : count;
  const auto at_least = [](int32_t a, int32_t b) { return a > b ? a : b; };
  switch (rule) {
    case kStatic:
    case kSequential:
      return quota;
    case kDynamic:
      return at_least(quota, __syncthreads_count(candidate && key > threshold));
    case kThreshold:
      return at_least(1, __syncthreads_count(candidate && key >= threshold));
    case kFactor: {
      if (threadIdx.x == 0) *shared_count = count;
      __syncthreads();
      if (candidate && !(key >= factor_bar(threshold, rank))) atomicMin(shared_count, rank);
      __syncthreads();
      return factor_count(*shared_count, count);
    }
    default: {  // kEntropyBounded, whose keys are negated entropies
      if (candidate) by_rank[rank] = -key;
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

__global__ void unmask_kernel(UnmaskArgs args) {
  __shared__ float keys[kMaxCanvas];
  __shared__ float by_rank[kMaxCanvas];
  __shared__ int32_t shared_count;

  const int64_t request = blockIdx.x;
  const int32_t p = static_cast<int32_t>(threadIdx.x);
  const int64_t first = args.row_start[request];
  const int64_t end = args.row_start[request + 1];
  const int64_t slot = args.slots[request];
  const bool in_range = slot >= 0 && slot < args.num_slots && first >= 0 && end >= first &&
                        end <= args.rows && end - first <= args.width;
  const int32_t rule = in_range ? args.rule[slot] : -1;
  if (rule < 0 || rule >= kUnmaskRules) {
    if (p == 0) args.remaining[request] = -1;
    return;
  }
  const int32_t length = static_cast<int32_t>(end - first);
  const int64_t state = slot * args.width + p;
  const int64_t row = first + p;
  const int32_t step = args.step[slot];
  const bool candidate = p < length && args.masked[state];
  const int32_t count = __syncthreads_count(candidate);
  if (count == 0) {
    if (p == 0) args.remaining[request] = 0;
    return;
  }

  bool pick;
  if (rule == kGiven) {
    pick = candidate && args.picked != nullptr && args.picked[row];
  } else {
    // The higher key goes first, ties to the lower position; NaN keeps a row out of all
    // comparisons. SEQUENTIAL is one great tie.
    float key = NAN;
    if (candidate) {
      key = rule == kSequential       ? 0.0f
            : rule == kEntropyBounded ? -rank_entropy(args.entropy[row])
                                      : rank_confidence(args.confidence[row]);
    }
    keys[p] = key;
    __syncthreads();
    int32_t rank = 0;
    for (int32_t q = 0; q < length; ++q) rank += keys[q] > key || (keys[q] == key && q < p) ? 1 : 0;
    const int32_t quota = unmask_quota(args.block_length[slot], args.steps[slot], step);
    const int32_t settle = count_to_settle(rule, candidate, key, rank, count, quota,
                                           args.threshold[slot], by_rank, &shared_count);
    pick = candidate && rank < settle;
  }

  if (pick) {
    args.canvas[state] = args.token[row];
    args.masked[state] = false;
    args.settled_at[state] = step;
  }
  const int32_t settled = __syncthreads_count(pick);  // and nobody still reads the step
  if (p == 0) {
    args.step[slot] = step + 1;
    args.remaining[request] = count - settled;
  }
}

}  // namespace

int unmask_cuda(const UnmaskArgs& args, void* stream) {
  const int whole_warps = static_cast<int>((args.width + 31) / 32 * 32);
  const int threads = whole_warps == 0 ? 32 : whole_warps;
  const auto blocks = static_cast<unsigned>(args.requests);
  const auto on = static_cast<cudaStream_t>(stream);
  unmask_kernel<<<blocks, threads, 0, on>>>(args);
  return cudaGetLastError();
}

}  // namespace vllm_diffusion
