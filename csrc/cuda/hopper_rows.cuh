// What a warpgroup of block_causal_attention does on Hopper: 64 rows go through the keys.
//
// While it weighs the scores of one tile, the matrix unit multiplies the values of the tile before.
// Two warpgroups take turns in giving it work: one weighs while the other's products are made.
#pragma once

#include "cuda/block_causal.cuh"
#include "cuda/hopper_fetch.cuh"
#include "cuda/wgmma.cuh"

namespace vllm_diffusion {

constexpr int kTurn = 3;  // named barriers kTurn and kTurn + 1; 1 and 2 are the warpgroups' own

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <Dtype kDtype, int kHead>
class Rows {
 public:
  __device__ Rows(const BlockCausalArgs& args, const RowTile& tile, int32_t group,
                  const Shared& shared)
      : args_(args),
        tile_(tile),
        group_(group),
        shared_(shared),
        number_(static_cast<int>(threadIdx.x) / kGroupThreads - 1),
        thread_(static_cast<int>(threadIdx.x) % kGroupThreads) {}

  __device__ void run(int32_t end) {
    end_ = end;
    find_rows();
    load_query();
    const int32_t first = tile_.first + (number_ * 64 < tile_.rows ? number_ * 64 : 0);
    const int32_t sure = row_end(first / group_);  // keys that every row sees
    const int tiles = (end + kKeys - 1) / kKeys;
    if (tiles > 0) attend(tiles, sure);
    write();
  }

 private:
  using L = HopperLayout<kHead>;

  __device__ int32_t row_end(int32_t position) const {
    return block_end(tile_.before + position, tile_.block_length, tile_.seq_len);
  }

  // The thread's two rows: their place, and which keys they see.
  __device__ void find_rows() {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int32_t in_tile = number_ * 64 + thread_ / 32 * 16 + thread_ % 32 / 4 + 8 * h;
      const int32_t row = tile_.first + in_tile;
      position_[h] = in_tile < tile_.rows ? row / group_ : -1;
      head_[h] = row % group_;
      row_end_[h] = position_[h] >= 0 ? row_end(position_[h]) : end_;
    }
  }

  __device__ void load_query() const {
    const auto* query = static_cast<const uint16_t*>(args_.query);
#pragma unroll
    for (int i = 0; i < 64 * L::kPieces / kGroupThreads; ++i) {
      const int at = i * kGroupThreads + thread_;
      const int in_tile = number_ * 64 + at / L::kPieces, piece = at % L::kPieces;
      const bool wanted = in_tile < tile_.rows;
      const int32_t row = tile_.first + (wanted ? in_tile : 0);
      const int64_t token = tile_.query_start + row / group_;
      const int64_t head = static_cast<int64_t>(blockIdx.y) * group_ + row % group_;
      copy_async(
          shared_.query + piece / 8 * L::kPanel + swizzled(in_tile, piece % 8),
          query + token * args_.query_token_stride + head * args_.query_head_stride + piece * 8,
          wanted);
    }
    commit_copies();
    wait_copies<0>();
    fence_for_matrix_unit();
    meet<kGroupThreads>(1 + number_);
  }

  __device__ void attend(int tiles, int32_t sure) {
    float score[kKeys / 2], keep[2];
    if (number_ == 1) pass<2 * kGroupThreads>(kTurn);  // the first turn is the other's
    shared_.keys.wait_full(0);
    fence_for_matrix_unit();
    meet<2 * kGroupThreads>(kTurn + number_);
    warpgroup_begin();
    multiply_keys(score, 0);
    warpgroup_commit();
    end_turn(0, tiles);
    warpgroup_wait<0>();
    hold(score);
    shared_.keys.release(0);
    if (kKeys > sure) mask(score, 0);
    weigh(score, keep);
    take_weights(score);
    // Two loops: a branch around the mask would end the overlap.
    int i = 1;
#pragma unroll 1
    for (; i < tiles && (i + 1) * kKeys <= sure; ++i) step<false>(score, i, tiles);
#pragma unroll 1
    for (; i < tiles; ++i) step<true>(score, i, tiles);
    shared_.values.wait_full(tiles - 1);
    fence_for_matrix_unit();
    hold(sum_);
    warpgroup_begin();
    multiply_values(tiles - 1);
    warpgroup_commit();
    warpgroup_wait<0>();
    hold(sum_);
  }

  // The scores of tile `index`, and the values of the tile before it.
  template <bool kMasked>
  __device__ __forceinline__ void step(float (&score)[kKeys / 2], int index, int tiles) {
    shared_.keys.wait_full(index);
    shared_.values.wait_full(index - 1);
    fence_for_matrix_unit();
    meet<2 * kGroupThreads>(kTurn + number_);
    hold(score);
    hold(sum_);
    warpgroup_begin();
    multiply_keys(score, index);
    warpgroup_commit();
    multiply_values(index - 1);
    warpgroup_commit();
    end_turn(index, tiles);
    warpgroup_wait<1>();
    hold(score);
    shared_.keys.release(index);
    if constexpr (kMasked) mask(score, index * kKeys);
    float keep[2];
    weigh(score, keep);
    hold(score);
    warpgroup_wait<0>();
    hold(sum_);
    shared_.values.release(index - 1);
#pragma unroll
    for (int k = 0; k < kHead / 2; ++k) sum_[k] *= keep[k / 2 % 2];
    take_weights(score);
  }

  // Nobody waits for the turn after the last.
  __device__ void end_turn(int index, int tiles) const {
    if (number_ == 0 || index + 1 < tiles) pass<2 * kGroupThreads>(kTurn + 1 - number_);
  }

  // Of the score's columns 16 k ... + 15, as the instruction wants its first operand.
  __device__ void take_weights(const float (&score)[kKeys / 2]) {
#pragma unroll
    for (int k = 0; k < kKeys / 4; ++k)
      weight_[k / 4][k % 4] = pack<kDtype>(score[2 * k], score[2 * k + 1]);
  }

  __device__ void multiply_keys(float (&score)[kKeys / 2], int index) const {
    const uint32_t query = shared_.query + number_ * 64 * kPanelRow;
    const uint32_t keys = shared_.keys.tile(index);
#pragma unroll
    for (int k = 0; k < kHead / 16; ++k) {
      const uint32_t offset = k / 4 * L::kPanel + k % 4 * 32;
      warpgroup_mma<kDtype>(score, operand(query + offset), operand(keys + offset), k > 0);
    }
  }

  __device__ void multiply_values(int index) {
    const uint32_t values = shared_.values.tile(index);
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k)
      warpgroup_mma<kDtype>(sum_, weight_[k], operand(values + k * 16 * kPanelRow, L::kPanel));
  }

  __device__ void mask(float (&score)[kKeys / 2], int first) const {
#pragma unroll
    for (int k = 0; k < kKeys / 2; ++k) {
      const int key = first + k / 4 * 8 + thread_ % 4 * 2 + k % 2;
      if (key >= row_end_[k / 2 % 2]) score[k] = -INFINITY;
    }
  }

  // Turns scores into weights relative to the rows' running maxima; `keep` is what the sums so far
  // count from now on.
  __device__ void weigh(float (&score)[kKeys / 2], float (&keep)[2]) {
    const float scale = args_.scale * kLog2E;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float top = -INFINITY;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
        top = fmaxf(top, fmaxf(score[4 * n + 2 * h], score[4 * n + 2 * h + 1]));
      top = fmaxf(max_[h], quad_max(top) * scale);
      const float base = top == -INFINITY ? 0.0f : top;
      keep[h] = exp2_approx(max_[h] - base);
      max_[h] = top;
      float total = 0.0f;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int k = 4 * n + 2 * h; k < 4 * n + 2 * h + 2; ++k) {
          score[k] = exp2_approx(fmaf(score[k], scale, -base));
          total += score[k];
        }
      }
      total_[h] = total_[h] * keep[h] + total;
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
                      head * args_.out_head_stride + thread_ % 4 * 2;
#pragma unroll
      for (int d = 0; d < kHead / 8; ++d)
        *reinterpret_cast<uint32_t*>(out + d * 8) =
            pack<kDtype>(sum_[4 * d + 2 * h] * inverse, sum_[4 * d + 2 * h + 1] * inverse);
    }
  }

  const BlockCausalArgs& args_;
  const RowTile& tile_;
  const int32_t group_;
  const Shared& shared_;
  const int number_, thread_;
  int32_t end_ = 0;
  int32_t position_[2], head_[2], row_end_[2];
  uint32_t weight_[kKeys / 16][4];
  float sum_[kHead / 2] = {};
  float max_[2] = {-INFINITY, -INFINITY};
  float total_[2] = {0.0f, 0.0f};
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace vllm_diffusion
