// block_causal_tail on CUDA (sm_80 and later): a warp adds the keys after each of 16 rows to what
// causal attention gave. Everything is read once, from global memory into registers.
//
// The order of a product's terms is free: columns are assigned to lanes such that each lane reads
// and writes 16 bytes at a time, instead of the 4 that the instruction's layout suggests.
#include <cuda_runtime.h>

#include "cuda/block_causal.cuh"
#include "cuda/mma.cuh"

namespace vllm_diffusion {
namespace {

constexpr int kWarps = 4;
constexpr int kRows = 16 * kWarps;
constexpr int kKeys = 16;

template <typename T>
__device__ __forceinline__ uint4 load16(const T* from, bool wanted) {
  return wanted ? *reinterpret_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
}

template <Dtype kDtype, int kHead>
class Tail {
 public:
  __device__ Tail(const BlockCausalArgs& args, const RowTile& tile, int32_t group)
      : args_(args), tile_(tile), group_(group) {}

  __device__ void run() {
    const int32_t in_tile = static_cast<int32_t>(threadIdx.x) / 32 * 16;
    const int32_t rows = tile_.rows - in_tile < 16 ? tile_.rows - in_tile : 16;
    if (rows <= 0) return;
    const int32_t first = (tile_.first + in_tile) / group_;
    const int32_t last = (tile_.first + in_tile + rows - 1) / group_;
    const int32_t begin = tile_.before + first + 1;
    const int32_t end = row_end(last);
    if (begin >= end) return;
    find_rows(in_tile, rows);
    load_query();
    for (int32_t key = begin; key < end; key += kKeys) attend(key, end);
    merge();
  }

 private:
  static constexpr int kQueryParts = (kHead + 31) / 32;
  static constexpr int kValueParts = (kHead + 63) / 64;

  __device__ int g() const { return static_cast<int>(threadIdx.x) % 32 / 4; }
  __device__ int t() const { return static_cast<int>(threadIdx.x) % 4; }
  __device__ int32_t row_end(int32_t position) const {
    return block_end(tile_.before + position, tile_.block_length, tile_.seq_len);
  }

  __device__ void find_rows(int32_t in_tile, int32_t rows) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int32_t row = tile_.first + in_tile + g() + 8 * h;
      const int32_t position = row / group_;
      token_[h] = tile_.query_start + position;
      head_[h] = static_cast<int32_t>(blockIdx.y) * group_ + row % group_;
      row_begin_[h] = tile_.before + position + 1;
      row_end_[h] = g() + 8 * h < rows ? row_end(position) : 0;
    }
  }

  __device__ bool wanted(int h) const { return row_begin_[h] < row_end_[h]; }

  // Lane t has columns 32 q + 8 t ... + 7 of its rows, here and of the keys.
  __device__ void load_query() {
    const auto* query = static_cast<const uint16_t*>(args_.query);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t at = token_[h] * args_.query_token_stride + head_[h] * args_.query_head_stride;
#pragma unroll
      for (int q = 0; q < kQueryParts; ++q) {
        const int column = 32 * q + 8 * t();
        query_[q][h] = load16(query + at + column, wanted(h) && column < kHead);
      }
    }
  }

  __device__ void attend(int32_t begin, int32_t end) {
    const PagedRow paged = paged_row(args_, tile_.request);
    const int64_t kv_head = blockIdx.y;
    float score[2][4] = {};
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int32_t token = begin + 8 * n + g();
      int32_t slot = 0, page = -1;
      if (token < end) page = paged.locate(token, slot);
      const auto* key = static_cast<const uint16_t*>(args_.key) +
                        (page < 0 ? 0 : page) * args_.key_page_stride +
                        slot * args_.key_token_stride + kv_head * args_.key_head_stride;
      uint4 part[kQueryParts];
#pragma unroll
      for (int q = 0; q < kQueryParts; ++q) {
        const int column = 32 * q + 8 * t();
        part[q] = load16(key + column, page >= 0 && column < kHead);
      }
#pragma unroll
      for (int q = 0; q < kQueryParts; ++q) {
        const uint4 &low = query_[q][0], &high = query_[q][1];
        const uint32_t a[4] = {low.x, high.x, low.y, high.y};
        const uint32_t b[4] = {low.z, high.z, low.w, high.w};
        mma<kDtype>(score[n], a, part[q].x, part[q].y);
        mma<kDtype>(score[n], b, part[q].z, part[q].w);
      }
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int32_t token = begin + 8 * n + 2 * t() + e % 2;
        if (token < row_begin_[e / 2] || token >= row_end_[e / 2]) score[n][e] = -INFINITY;
      }
    }
    weigh(score);
    const uint32_t a[4] = {
        pack<kDtype>(score[0][0], score[0][1]), pack<kDtype>(score[0][2], score[0][3]),
        pack<kDtype>(score[1][0], score[1][1]), pack<kDtype>(score[1][2], score[1][3])};
    // Lane g has columns 64 d + 8 g ... + 7 of the values of keys 2t, 2t + 1, 2t + 8, 2t + 9.
    const uint16_t* value[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t token = begin + 2 * t() + i % 2 + i / 2 * 8;
      int32_t slot = 0, page = -1;
      if (token < end) page = paged.locate(token, slot);
      value[i] = page < 0
                     ? nullptr
                     : static_cast<const uint16_t*>(args_.value) + page * args_.value_page_stride +
                           slot * args_.value_token_stride + kv_head * args_.value_head_stride;
    }
#pragma unroll
    for (int d = 0; d < kValueParts; ++d) {
      const int column = 64 * d + 8 * g();
      union {
        uint4 all;
        uint32_t pair[4];
      } part[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        part[i].all = load16(value[i] + column, value[i] != nullptr && column < kHead);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const unsigned select = j % 2 == 0 ? 0x5410 : 0x7632;
        mma<kDtype>(sum_[d][j], a, __byte_perm(part[0].pair[j / 2], part[1].pair[j / 2], select),
                    __byte_perm(part[2].pair[j / 2], part[3].pair[j / 2], select));
      }
    }
  }

  // Turns scores into weights relative to the rows' running maxima.
  __device__ void weigh(float (&score)[2][4]) {
    const float scale = args_.scale * kLog2E;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float top = -INFINITY;
#pragma unroll
      for (int n = 0; n < 2; ++n) top = fmaxf(top, fmaxf(score[n][2 * h], score[n][2 * h + 1]));
      top = fmaxf(max_[h], quad_max(top) * scale);
      const float base = top == -INFINITY ? 0.0f : top;
      const float keep = exp2_approx(max_[h] - base);
      max_[h] = top;
      total_[h] *= keep;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int e = 2 * h; e < 2 * h + 2; ++e) {
          score[n][e] = exp2_approx(fmaf(score[n][e], scale, -base));
          total_[h] += score[n][e];
        }
      }
#pragma unroll
      for (int d = 0; d < kValueParts; ++d) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          sum_[d][j][2 * h] *= keep;
          sum_[d][j][2 * h + 1] *= keep;
        }
      }
    }
  }

  // Lane t has columns 64 d + 16 t ... + 15 of the result.
  __device__ void merge() const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float total = quad_sum(total_[h]);
      if (!wanted(h)) continue;
      const float lse = args_.lse[head_[h] * args_.lse_stride + token_[h]];
      const float before = isinf(lse) ? -INFINITY : lse * kLog2E;
      const float top = max_[h] > before ? max_[h] : before;
      const float old_weight = exp2_approx(before - top);
      const float new_weight = exp2_approx(max_[h] - top);
      const float inverse = 1.0f / (old_weight + total * new_weight);
      uint16_t* out = static_cast<uint16_t*>(args_.out) + token_[h] * args_.out_token_stride +
                      head_[h] * args_.out_head_stride + 16 * t();
#pragma unroll
      for (int d = 0; d < kValueParts; ++d) {
        if (64 * d + 16 * t() >= kHead) continue;
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          uint4* place = reinterpret_cast<uint4*>(out + 64 * d + 8 * c);
          union {
            uint4 all;
            uint32_t pair[4];
          } part = {*place};
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float2 value = unpack<kDtype>(part.pair[i]);
            if (old_weight == 0.0f) value = {0.0f, 0.0f};
            const int e = 2 * h + c;
            part.pair[i] =
                pack<kDtype>((value.x * old_weight + sum_[d][2 * i][e] * new_weight) * inverse,
                             (value.y * old_weight + sum_[d][2 * i + 1][e] * new_weight) * inverse);
          }
          *place = part.all;
        }
      }
    }
  }

  const BlockCausalArgs& args_;
  const RowTile& tile_;
  const int32_t group_;
  int64_t token_[2], head_[2];
  int32_t row_begin_[2], row_end_[2];
  uint4 query_[kQueryParts][2];
  float sum_[kValueParts][8][4] = {};
  float max_[2] = {-INFINITY, -INFINITY};
  float total_[2] = {0.0f, 0.0f};
};

template <Dtype kDtype, int kHead>
__global__ void __launch_bounds__(32 * kWarps, 3)
    tail_kernel(const __grid_constant__ BlockCausalArgs args, int32_t group) {
  const RowTile tile = find_tile<kRows>(args, group, static_cast<int32_t>(blockIdx.x));
  if (tile.rows <= 0 || tile.block_length <= 1) return;
  Tail<kDtype, kHead>(args, tile, group).run();
}

template <Dtype kDtype, int kHead>
int launch(const BlockCausalArgs& args, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(most_tiles(args, kRows)),
                  static_cast<unsigned>(args.kv_heads));
  tail_kernel<kDtype, kHead>
      <<<grid, 32 * kWarps, 0, stream>>>(args, static_cast<int32_t>(args.heads / args.kv_heads));
  return cudaGetLastError();
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

int block_causal_tail_cuda(const BlockCausalArgs& args, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  return args.dtype == Dtype::kBFloat16 ? launch_for_head<Dtype::kBFloat16>(args, on)
                                        : launch_for_head<Dtype::kFloat16>(args, on);
}

}  // namespace vllm_diffusion
