// The kernel of skinny_linear: y = x W^T for few rows of x, at the rate at which W can be read.
//
// Rows of W are the matrix instruction's rows, and tokens its columns. One warp has the tensor
// memory accelerator bring W and x into a ring of stages, four multiply. The work, tiles of
// rows of W times steps along its columns, is cut into as many equal pieces as there are thread
// blocks (stream-K: Osama et al., arXiv 2301.03598). Where blocks share a tile, each leaves its
// sums, and the last to arrive adds them, in the order of the columns: the same bits every time.
//
// W and x of 8 bits (e4m3) differ in the instruction alone: a row of a panel is 128 bytes, whatever
// they hold. Their sums are multiplied with the scales of the row of W and of the token at the end.
#pragma once

#include "cuda/tensor_copy.cuh"
#include "cuda/wgmma_narrow.cuh"

namespace vllm_diffusion {

constexpr int kBlockRows = 64;  // rows of W of one instruction, and of the output's tile
constexpr int kPanelBytes = kBlockRows * 128;  // 64 columns of them, of 8 bits 128
constexpr int kMultipliers = 128;              // threads; a warp that fetches comes after them

struct SkinnyParams {
  CUtensorMap weight, input;
  void* out;
  const void* bias;
  const float* input_scale;  // these two of 8 bits only: of a token, of a row of W, or of all
  const float* weight_scale;
  int32_t input_scale_step, weight_scale_step;  // 1, or 0 where there is one for all
  float* partials;
  int32_t* arrived;      // a tile each, 0 before and after
  int32_t tokens, rows;  // rows of W
  int32_t steps;         // along the columns of W
  int32_t tiles;
};

template <int kTokens, int kDepth, bool kGated>
struct SkinnyShape {
  static constexpr int kSets = kGated ? 2 : 1;  // of 64 rows of W in a tile
  static constexpr int kWeightBytes = kSets * kDepth * kPanelBytes;
  static constexpr int kInputBytes = kDepth * kTokens * 128;
  static constexpr int kStageBytes = kWeightBytes + kInputBytes;
  static constexpr int kSums = kSets * kBlockRows * kTokens;
  // Of shared memory. Fewer stages than fit leave room for the kernels that come next.
  static constexpr int kStages = ((kTokens <= 32 ? 148 : 225) * 1024 - 1024) / kStageBytes;
  static constexpr int kBytes = kStages * kStageBytes + 1024;  // to align
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ uint32_t transposed(uint32_t pair) {
  uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pair));
  return out;
}

// The cut: block `i` of the grid has the units from first(i) to first(i + 1).
struct Cut {
  int64_t units, blocks;
  __device__ __forceinline__ int32_t first(int32_t block) const {
    return static_cast<int32_t>(block * units / blocks);
  }
  __device__ __forceinline__ int32_t owner(int32_t unit) const {
    return static_cast<int32_t>(((unit + 1) * blocks - 1) / units);
  }
};

// kDtype: of the output, and of W and x unless they have 8 bits.
template <Dtype kDtype, bool kEight, int kTokens, int kDepth, bool kGated>
class Skinny {
 public:
  using S = SkinnyShape<kTokens, kDepth, kGated>;
  __device__ Skinny(const SkinnyParams& params, uint32_t memory, uint32_t barriers, int32_t* last)
      : p_(params),
        memory_(memory),
        barriers_(barriers),
        last_(last),
        cut_{static_cast<int64_t>(params.tiles) * params.steps, gridDim.x},
        begin_(cut_.first(blockIdx.x)),
        end_(cut_.first(blockIdx.x + 1)) {}

  __device__ void fetch() const {
    const uint64_t once = evict_first(), often = evict_last();
    const int32_t count = end_ - begin_;
    const int32_t ahead = count < S::kStages ? count : S::kStages;
    for (int32_t i = 0; i < ahead; ++i) {
      arrive_expecting(full(i), S::kStageBytes);
      fetch_weight(begin_ + i, i, once);
    }
    wait_for_kernels_before();
    for (int32_t i = 0; i < ahead; ++i) fetch_input(begin_ + i, i, often);
    int stage = 0, parity = 0;
    for (int32_t i = ahead; i < count; ++i) {
      wait(empty(stage), parity);
      arrive_expecting(full(stage), S::kStageBytes);
      fetch_weight(begin_ + i, stage, once);
      fetch_input(begin_ + i, stage, often);
      if (++stage == S::kStages) stage = 0, parity ^= 1;
    }
  }

  __device__ void multiply() {
    wait_for_kernels_before();
    // Scales are on their way while the products are summed.
    if constexpr (kEight) {
#pragma unroll
      for (int j = 0; j < kTokens / 8; ++j)
        token_scales_[j] = input_scales_of(j * 8 + static_cast<int>(threadIdx.x) % 4 * 2);
    }
    for (int32_t unit = begin_; unit < end_;) {
      const int32_t tile = unit / p_.steps, first = tile * p_.steps;
      const int32_t stop = min(end_, first + p_.steps);
      if constexpr (kEight) find_row_scales(tile);
      float sum[S::kSets][kTokens / 2];
      add_up(sum, stop - unit);
      if ((unit == first && stop == first + p_.steps) || join(sum, tile, first)) write(sum, tile);
      unit = stop;
    }
  }

 private:
  using Sums = float[S::kSets][kTokens / 2];

  __device__ uint32_t full(int stage) const { return barriers_ + stage * 16; }
  __device__ uint32_t empty(int stage) const { return barriers_ + stage * 16 + 8; }

  __device__ void fetch_weight(int32_t unit, int stage, uint64_t policy) const {
    const int32_t tile = unit / p_.steps, step = unit - tile * p_.steps;
    const uint32_t to = memory_ + stage * S::kStageBytes;
#pragma unroll
    for (int s = 0; s < S::kSets; ++s)
      copy_box(to + s * kDepth * kPanelBytes, p_.weight, full(stage), 0,
               tile * kBlockRows + s * (p_.rows / 2), step * kDepth, policy);
  }

  __device__ void fetch_input(int32_t unit, int stage, uint64_t policy) const {
    copy_box(memory_ + stage * S::kStageBytes + S::kWeightBytes, p_.input, full(stage), 0, 0,
             unit % p_.steps * kDepth, policy);
  }

  __device__ void release(int stage) const {
    if (threadIdx.x % 32 == 0) arrive(empty(stage));
  }

  __device__ __forceinline__ void hold_all(Sums& sum) const {
#pragma unroll
    for (int s = 0; s < S::kSets; ++s) hold(sum[s]);
  }

  // The products of the next `count` stages.
  __device__ __forceinline__ void add_up(Sums& sum, int32_t count) {
    int before = 0;
    for (int32_t i = 0; i < count; ++i) {
      wait(full(stage_), parity_);
      const uint32_t at = memory_ + stage_ * S::kStageBytes;
      const uint64_t weight = operand(at);
      const uint64_t input = operand(at + S::kWeightBytes);
      hold_all(sum);
      warpgroup_begin();
#pragma unroll
      for (int panel = 0; panel < kDepth; ++panel) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
#pragma unroll
          for (int s = 0; s < S::kSets; ++s) {
            const uint64_t a = weight + ((s * kDepth + panel) * kPanelBytes + k * 32) / 16;
            const uint64_t b = input + (panel * kTokens * 128 + k * 32) / 16;
            const bool add = i > 0 || panel > 0 || k > 0;
            if constexpr (kEight) {
              warpgroup_mma_e4m3(sum[s], a, b, add);
            } else {
              warpgroup_mma<kDtype>(sum[s], a, b, add);
            }
          }
        }
      }
      warpgroup_commit();
      if (i > 0) {
        warpgroup_wait<1>();
        release(before);
      }
      before = stage_;
      if (++stage_ == S::kStages) stage_ = 0, parity_ ^= 1;
    }
    warpgroup_wait<0>();
    hold_all(sum);
    release(before);
  }

  // Leaves the sums; the last of a tile's blocks gets all of them, added.
  __device__ bool join(Sums& sum, int32_t tile, int32_t first) {
    constexpr int kQuads = S::kSets * kTokens / 8;
    auto* slots = reinterpret_cast<float4*>(p_.partials);
    const auto slot = [&](int32_t block) {
      const int64_t number = 2 * block + (cut_.first(block) < first);
      return slots + number * (S::kSums / 4) + threadIdx.x;
    };
    float4* mine = slot(blockIdx.x);
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const float* from = sum[q * 8 / kTokens] + q * 4 % (kTokens / 2);
      __stcg(mine + q * kMultipliers, make_float4(from[0], from[1], from[2], from[3]));
    }
    const int32_t one = cut_.owner(first), other = cut_.owner(first + p_.steps - 1);
    __threadfence();
    meet<kMultipliers>(1);
    if (threadIdx.x == 0) {
      int32_t* count = p_.arrived + tile;
      const bool last = atomicAdd(count, 1) == other - one;
      if (last) *count = 0;
      *last_ = last;
      __threadfence();
    }
    meet<kMultipliers>(1);
    if (!*last_) return false;
#pragma unroll
    for (int s = 0; s < S::kSets; ++s) {
#pragma unroll
      for (int j = 0; j < kTokens / 2; ++j) sum[s][j] = 0.0f;
    }
    for (int32_t block = one; block <= other; ++block) {
      const float4* theirs = slot(block);
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        const float4 part = __ldcg(theirs + q * kMultipliers);
        float* to = sum[q * 8 / kTokens] + q * 4 % (kTokens / 2);
        to[0] += part.x;
        to[1] += part.y;
        to[2] += part.z;
        to[3] += part.w;
      }
    }
    return true;
  }

  __device__ float bias_of(int32_t row) const {
    if (p_.bias == nullptr || row >= p_.rows) return 0.0f;
    return unpack<kDtype>(static_cast<const uint16_t*>(p_.bias)[row]).x;
  }

  // Of the rows of W that a lane has of a tile, of each half; see `write`.
  __device__ void find_row_scales(int32_t tile) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int s = 0; s < S::kSets; ++s) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int32_t row = s * (p_.rows / 2) + tile * kBlockRows + warp * 16 + h * 8 + lane / 4;
        row_scales_[s][h] = __ldg(p_.weight_scale + min(row, p_.rows - 1) * p_.weight_scale_step);
      }
    }
  }

  // Of tokens `token` and the one after it; any number behind the last one, which is not written.
  __device__ float2 input_scales_of(int token) const {
    const auto of = [this](int at) {
      return __ldcg(p_.input_scale + min(at, p_.tokens - 1) * p_.input_scale_step);
    };
    return make_float2(of(token), of(token + 1));
  }

  // A lane has rows g and g + 8 of 16, of tokens 2t and 2t + 1; it writes two rows of token g.
  __device__ void write(const Sums& sum, int32_t tile) const {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const int32_t width = kGated ? p_.rows / 2 : p_.rows;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int32_t row = tile * kBlockRows + warp * 16 + h * 8;
      if (row >= width) continue;
      const float bias = bias_of(row + lane / 4);
      const float second = kGated ? bias_of(width + row + lane / 4) : 0.0f;
      // 16-bit numbers have no scales, and what they add up to is not multiplied.
      const auto both = [&](int set, int j, float add) {
        const float* of = &sum[set][4 * j + 2 * h];
        if constexpr (kEight) {
          const float by = row_scales_[set][h];
          const float2 tokens = token_scales_[j];
          return pack<kDtype>(tokens.x * (by * of[0]) + add, tokens.y * (by * of[1]) + add);
        } else {
          return pack<kDtype>(of[0] + add, of[1] + add);
        }
      };
      auto* out = static_cast<uint16_t*>(p_.out) + row + lane % 4 * 2;
#pragma unroll
      for (int j = 0; j < kTokens / 8; ++j) {
        uint32_t pair = both(0, j, bias);
        if constexpr (kGated) {
          const float2 gate = unpack<kDtype>(pair);
          const float2 up = unpack<kDtype>(both(1, j, second));
          const float2 act = unpack<kDtype>(
              pack<kDtype>(gate.x / (1.0f + __expf(-gate.x)), gate.y / (1.0f + __expf(-gate.y))));
          pair = pack<kDtype>(act.x * up.x, act.y * up.y);
        }
        pair = transposed(pair);
        const int token = j * 8 + lane / 4;
        if (token < p_.tokens)
          *reinterpret_cast<uint32_t*>(out + static_cast<int64_t>(token) * width) = pair;
      }
    }
  }

  const SkinnyParams& p_;
  const uint32_t memory_, barriers_;
  int32_t* last_;
  const Cut cut_;
  const int32_t begin_, end_;
  int stage_ = 0, parity_ = 0;
  float2 token_scales_[kTokens / 8];
  float row_scales_[S::kSets][2];
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <Dtype kDtype, bool kEight, int kTokens, int kDepth, bool kGated>
__global__ void __launch_bounds__(kMultipliers + 32)
    skinny_kernel(const __grid_constant__ SkinnyParams params) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using S = SkinnyShape<kTokens, kDepth, kGated>;
  extern __shared__ unsigned char memory[];
  __shared__ __align__(8) uint64_t barriers[2 * S::kStages];
  __shared__ int32_t last;
  const uint32_t bars = shared_address(barriers);
  const uint32_t stages = (shared_address(memory) + kAtom - 1) / kAtom * kAtom;
  if (threadIdx.x == 0) {
    prefetch_map(params.weight);
    prefetch_map(params.input);
    for (int i = 0; i < S::kStages; ++i) {
      init_barrier(bars + i * 16, 1);
      init_barrier(bars + i * 16 + 8, kMultipliers / 32);
    }
    fence_for_matrix_unit();
  }
  __syncthreads();
  let_next_kernel_start();
  Skinny<kDtype, kEight, kTokens, kDepth, kGated> work(params, stages, bars, &last);
  if (threadIdx.x >= kMultipliers) {
    if (threadIdx.x == kMultipliers) work.fetch();
  } else {
    work.multiply();
  }
#endif
}

}  // namespace vllm_diffusion
