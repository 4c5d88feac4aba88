// block_causal_attention on CUDA (sm_80 and later): four warps of 16 rows go through the keys, 64
// at a time, with an online softmax; the next keys and values arrive meanwhile.
#include <cuda_runtime.h>

#include "cuda/block_causal.cuh"
#include "cuda/mma.cuh"

namespace vllm_diffusion {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kRows = 16 * kWarps;
constexpr int kKeys = 64;

template <int kHead>
struct Layout {
  static constexpr int kPitch = kHead + 8;  // an odd number of 16 bytes: no bank conflicts
  static constexpr int kTile = kKeys * kPitch;
  static constexpr int kBytes = 4 * kTile * 2;  // two stages of keys and values
};

template <Dtype kDtype, int kHead>
class Attention {
 public:
  __device__ Attention(const BlockCausalArgs& args, const RowTile& tile, int32_t group,
                       uint32_t shared)
      : args_(args), tile_(tile), group_(group), shared_(shared) {}

  __device__ void run() {
    const int32_t last = (tile_.first + tile_.rows - 1) / group_;
    end_ = row_end(last);
    const int32_t sure = row_end(tile_.first / group_);  // keys that every row sees
    find_rows();
    const int tiles = (end_ + kKeys - 1) / kKeys;

    load_query(stage(1));
    commit_copies();
    if (tiles > 0) load_keys(0);
    commit_copies();
    wait_copies<1>();
    __syncthreads();
    take_query(stage(1));
    for (int i = 0; i < tiles; ++i) {
      wait_copies<0>();
      __syncthreads();
      if (i + 1 < tiles) load_keys(i + 1);
      commit_copies();
      attend(i, (i + 1) * kKeys > sure);
    }
    wait_copies<0>();
    write();
  }

 private:
  using L = Layout<kHead>;

  __device__ int lane() const { return static_cast<int>(threadIdx.x) % 32; }
  __device__ int warp() const { return static_cast<int>(threadIdx.x) / 32; }
  __device__ uint32_t stage(int i) const { return shared_ + (i & 1) * 2 * L::kTile * 2; }
  __device__ int32_t row_end(int32_t position) const {
    return block_end(tile_.before + position, tile_.block_length, tile_.seq_len);
  }

  // The lane's two rows: their place, and which keys they see.
  __device__ void find_rows() {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int32_t in_tile = warp() * 16 + lane() / 4 + 8 * h;
      const int32_t row = tile_.first + in_tile;
      position_[h] = in_tile < tile_.rows ? row / group_ : -1;
      head_[h] = row % group_;
      row_end_[h] = position_[h] >= 0 ? row_end(position_[h]) : end_;
    }
  }

  __device__ void load_query(uint32_t to) const {
    constexpr int kChunks = kHead / 8;
    const auto* query = static_cast<const uint16_t*>(args_.query);
#pragma unroll
    for (int i = 0; i < kRows * kChunks / kThreads; ++i) {
      const int chunk = i * kThreads + static_cast<int>(threadIdx.x);
      const int in_tile = chunk / kChunks, column = chunk % kChunks * 8;
      const bool wanted = in_tile < tile_.rows;
      const int32_t row = tile_.first + (wanted ? in_tile : 0);
      const int64_t token = tile_.query_start + row / group_;
      const int64_t head = static_cast<int64_t>(blockIdx.y) * group_ + row % group_;
      const int64_t at = token * args_.query_token_stride + head * args_.query_head_stride + column;
      copy_async(to + (in_tile * L::kPitch + column) * 2, query + at, wanted);
    }
  }

  __device__ void take_query(uint32_t from) {
    const int row = warp() * 16 + lane() % 16;
#pragma unroll
    for (int k = 0; k < kHead / 16; ++k)
      load_matrices(query_[k], from + (row * L::kPitch + k * 16 + lane() / 16 * 8) * 2);
  }

  __device__ void load_keys(int index) const {
    constexpr int kChunks = kHead / 8;
    const auto* key = static_cast<const uint16_t*>(args_.key);
    const auto* value = static_cast<const uint16_t*>(args_.value);
    const PagedRow paged = paged_row(args_, tile_.request);
    const uint32_t to = stage(index);
#pragma unroll
    for (int i = 0; i < kKeys * kChunks / kThreads; ++i) {
      const int chunk = i * kThreads + static_cast<int>(threadIdx.x);
      const int in_tile = chunk / kChunks, column = chunk % kChunks * 8;
      const int32_t token = index * kKeys + in_tile;
      int32_t slot = 0, page = -1;
      if (token < end_) page = paged.locate(token, slot);
      const bool wanted = page >= 0;
      const int64_t p = wanted ? page : 0, s = slot, h = blockIdx.y;
      const uint32_t at = to + (in_tile * L::kPitch + column) * 2;
      copy_async(at,
                 key + p * args_.key_page_stride + s * args_.key_token_stride +
                     h * args_.key_head_stride + column,
                 wanted);
      copy_async(at + L::kTile * 2,
                 value + p * args_.value_page_stride + s * args_.value_token_stride +
                     h * args_.value_head_stride + column,
                 wanted);
    }
  }

  __device__ void attend(int index, bool masked) {
    const uint32_t keys = stage(index), values = keys + L::kTile * 2;
    float score[kKeys / 8][4] = {};
#pragma unroll
    for (int k = 0; k < kHead / 16; ++k) {
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        const int key = n * 16 + lane() / 16 * 8 + lane() % 8;
        const int column = k * 16 + lane() / 8 % 2 * 8;
        uint32_t b[4];
        load_matrices(b, keys + (key * L::kPitch + column) * 2);
        mma<kDtype>(score[2 * n], query_[k], b[0], b[1]);
        mma<kDtype>(score[2 * n + 1], query_[k], b[2], b[3]);
      }
    }
    if (masked) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int key = index * kKeys + n * 8 + lane() % 4 * 2 + e % 2;
          if (key >= row_end_[e / 2]) score[n][e] = -INFINITY;
        }
      }
    }
    weigh(score);
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      const float (&low)[4] = score[2 * k];
      const float (&high)[4] = score[2 * k + 1];
      const uint32_t a[4] = {pack<kDtype>(low[0], low[1]), pack<kDtype>(low[2], low[3]),
                             pack<kDtype>(high[0], high[1]), pack<kDtype>(high[2], high[3])};
#pragma unroll
      for (int d = 0; d < kHead / 16; ++d) {
        const int key = k * 16 + lane() / 8 % 2 * 8 + lane() % 8;
        const int column = d * 16 + lane() / 16 * 8;
        uint32_t b[4];
        load_matrices_transposed(b, values + (key * L::kPitch + column) * 2);
        mma<kDtype>(sum_[2 * d], a, b[0], b[1]);
        mma<kDtype>(sum_[2 * d + 1], a, b[2], b[3]);
      }
    }
  }

  // Turns scores into weights relative to the rows' running maxima.
  __device__ void weigh(float (&score)[kKeys / 8][4]) {
    const float scale = args_.scale * kLog2E;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float top = -INFINITY;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
        top = fmaxf(top, fmaxf(score[n][2 * h], score[n][2 * h + 1]));
      top = fmaxf(max_[h], quad_max(top) * scale);
      const float base = top == -INFINITY ? 0.0f : top;
      const float keep = exp2_approx(max_[h] - base);
      max_[h] = top;
      float total = 0.0f;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int e = 2 * h; e < 2 * h + 2; ++e) {
          score[n][e] = exp2_approx(fmaf(score[n][e], scale, -base));
          total += score[n][e];
        }
      }
      total_[h] = total_[h] * keep + total;
#pragma unroll
      for (int d = 0; d < kHead / 8; ++d) {
        sum_[d][2 * h] *= keep;
        sum_[d][2 * h + 1] *= keep;
      }
    }
  }

  __device__ void write() const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float total = quad_sum(total_[h]);
      if (position_[h] < 0) continue;
      const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
      const int64_t token = tile_.query_start + position_[h];
      const int64_t head = static_cast<int64_t>(blockIdx.y) * group_ + head_[h];
      uint16_t* out = static_cast<uint16_t*>(args_.out) + token * args_.out_token_stride +
                      head * args_.out_head_stride + lane() % 4 * 2;
#pragma unroll
      for (int d = 0; d < kHead / 8; ++d)
        *reinterpret_cast<uint32_t*>(out + d * 8) =
            pack<kDtype>(sum_[d][2 * h] * inverse, sum_[d][2 * h + 1] * inverse);
    }
  }

  const BlockCausalArgs& args_;
  const RowTile& tile_;
  const int32_t group_;
  const uint32_t shared_;
  int32_t end_ = 0;
  int32_t position_[2], head_[2], row_end_[2];
  uint32_t query_[kHead / 16][4];
  float sum_[kHead / 8][4] = {};
  float max_[2] = {-INFINITY, -INFINITY};
  float total_[2] = {0.0f, 0.0f};
};

template <Dtype kDtype, int kHead>
__global__ void __launch_bounds__(kThreads, kHead == 128 ? 2 : 3)
    attention_kernel(const __grid_constant__ BlockCausalArgs args, int32_t group) {
  extern __shared__ __align__(16) unsigned char shared[];
  // The last rows of a request have the most to do: they start first.
  const auto index = static_cast<int32_t>(gridDim.x - 1 - blockIdx.x);
  const RowTile tile = find_tile<kRows>(args, group, index);
  if (tile.rows <= 0) return;
  Attention<kDtype, kHead>(args, tile, group, shared_address(shared)).run();
}

template <Dtype kDtype, int kHead>
int launch(const BlockCausalArgs& args, cudaStream_t stream) {
  return launch_tiles(attention_kernel<kDtype, kHead>, args, kRows, kThreads, Layout<kHead>::kBytes,
                      stream);
}

template <Dtype kDtype>
int launch_for_head(const BlockCausalArgs& args, cudaStream_t stream) {
  switch (args.head_size) {
    case 64:
      return launch<kDtype, 64>(args, stream);
    case 80:
      return launch<kDtype, 80>(args, stream);
    case 96:
      return launch<kDtype, 96>(args, stream);
    default:
      return launch<kDtype, 128>(args, stream);
  }
}

}  // namespace

int block_causal_attention_cuda(const BlockCausalArgs& args, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  if (hopper_suits(args)) return block_causal_attention_hopper(args, on);
  return args.dtype == Dtype::kBFloat16 ? launch_for_head<Dtype::kBFloat16>(args, on)
                                        : launch_for_head<Dtype::kFloat16>(args, on);
}

}  // namespace vllm_diffusion
