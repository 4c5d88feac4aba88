// How keys and values reach shared memory on Hopper: by a warpgroup of their own, some tiles ahead.
#pragma once

#include "cuda/block_causal.cuh"
#include "cuda/wgmma.cuh"

namespace vllm_diffusion {

constexpr int kGroupThreads = 128;
constexpr int kKeys = 128;
constexpr int kStages = 3;

template <int kHead>
struct HopperLayout {
  static constexpr int kPieces = kHead / 8;   // of 16 bytes in a row
  static constexpr int kPanel = kKeys * 128;  // bytes; of queries as of keys
  static constexpr int kTile = kPanel * kHead / 64;
  static constexpr int kBytes = kTile * (1 + 2 * kStages) + 1024;  // to align
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// One stage of keys, or of values: who waits for it to be full, and to be empty.
struct Ring {
  uint32_t tiles, full, empty;
  uint32_t bytes;

  __device__ __forceinline__ uint32_t tile(int i) const { return tiles + i % kStages * bytes; }
  __device__ __forceinline__ void wait_empty(int i) const {
    if (i >= kStages) wait(empty + i % kStages * 8, (i / kStages - 1) & 1);
  }
  __device__ __forceinline__ void wait_full(int i) const {
    wait(full + i % kStages * 8, i / kStages & 1);
  }
  __device__ __forceinline__ void fill(int i) const { arrive_after_copies(full + i % kStages * 8); }
  __device__ __forceinline__ void release(int i) const {
    if (threadIdx.x % 32 == 0) arrive(empty + i % kStages * 8);
  }
};

struct Shared {
  uint32_t query;
  Ring keys, values;
};

template <int kHead>
class Fetcher {
 public:
  __device__ Fetcher(const BlockCausalArgs& args, const RowTile& tile, const Shared& shared)
      : args_(args), tile_(tile), shared_(shared) {}

  // In the order of use: a tile's values are wanted after the keys of the next tile.
  __device__ void run(int32_t end) const {
    const int tiles = (end + kKeys - 1) / kKeys;
    int64_t place = find(0, end), before = -1;
    for (int i = 0; i <= tiles; ++i) {
      const int64_t next = find(i + 1, end);  // on its way meanwhile
      if (i < tiles) {
        shared_.keys.wait_empty(i);
        fetch(args_.key, place, shared_.keys.tile(i));
        shared_.keys.fill(i);
      }
      if (i > 0) {
        shared_.values.wait_empty(i - 1);
        fetch(args_.value, before, shared_.values.tile(i - 1));
        shared_.values.fill(i - 1);
      }
      before = place;
      place = next;
    }
    wait_copies<0>();
  }

 private:
  using L = HopperLayout<kHead>;
  static constexpr int kRowsAtOnce = kGroupThreads / L::kPieces;  // in one pass of the warpgroup
  static constexpr int kRowsOfWarp = 32 / L::kPieces;

  __device__ int lane() const { return static_cast<int>(threadIdx.x) % 32; }

  // Every lane finds the place of one of the 32 rows that its warp copies; -1 for none.
  __device__ int64_t find(int index, int32_t end) const {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int row = lane() / kRowsOfWarp * kRowsAtOnce + warp * kRowsOfWarp + lane() % kRowsOfWarp;
    const int32_t token = index * kKeys + row;
    int32_t slot = 0, page = -1;
    if (token < end) page = paged_row(args_, tile_.request).locate(token, slot);
    return page < 0 ? -1
                    : page * args_.key_page_stride + slot * args_.key_token_stride +
                          blockIdx.y * args_.key_head_stride;
  }

  __device__ void fetch(const void* cache, int64_t place, uint32_t to) const {
    const int thread = static_cast<int>(threadIdx.x), piece = thread % L::kPieces;
    const auto* from = static_cast<const uint16_t*>(cache) + piece * 8;
    to += piece / 8 * L::kPanel + swizzled(thread / L::kPieces, piece % 8);
    if (__all_sync(0xffffffffu, place >= 0)) {
      copy<true>(from, place, to);
    } else {
      copy<false>(from, place, to);
    }
  }

  // A pass after the other, a few at a time: the shuffles of one need not wait for the copies of
  // another. Passes are whole atoms apart, where rows are permuted alike.
  template <bool kAll>
  __device__ void copy(const uint16_t* from, int64_t place, uint32_t to) const {
    constexpr int kBatch = 4;
#pragma unroll
    for (int i = 0; i < L::kPieces; i += kBatch) {
      int64_t at[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b)
        at[b] = __shfl_sync(0xffffffffu, place, (i + b) * kRowsOfWarp + lane() / L::kPieces);
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const uint32_t row = to + (i + b) * kRowsAtOnce * kPanelRow;
        if constexpr (kAll) {
          copy_async(row, from + at[b]);
        } else {
          copy_async(row, from + (at[b] >= 0 ? at[b] : 0), at[b] >= 0);
        }
      }
    }
  }

  const BlockCausalArgs& args_;
  const RowTile& tile_;
  const Shared& shared_;
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace vllm_diffusion
