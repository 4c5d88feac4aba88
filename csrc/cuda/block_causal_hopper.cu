// block_causal_attention on Hopper: one warpgroup fetches keys and values, 128 at a time, two work
// on 64 rows each.
#include <cuda_runtime.h>

#include "cuda/block_causal.cuh"
#include "cuda/hopper_fetch.cuh"
#include "cuda/hopper_rows.cuh"
#include "cuda/launch.cuh"
#include "cuda/wgmma.cuh"

namespace vllm_diffusion {
namespace {

constexpr int kThreads = 3 * kGroupThreads;
constexpr int kRows = 128;

template <Dtype kDtype, int kHead>
__global__ void __launch_bounds__(kThreads, 1)
    hopper_kernel(const __grid_constant__ BlockCausalArgs args, int32_t group) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ unsigned char memory[];
  __shared__ __align__(8) uint64_t barriers[4 * kStages];
  using L = HopperLayout<kHead>;
  // The last rows of a request have the most to do: they start first.
  const auto index = static_cast<int32_t>(gridDim.x - 1 - blockIdx.x);
  const RowTile tile = find_tile<kRows>(args, group, index);
  if (tile.rows <= 0) return;
  Shared shared;
  shared.query = (shared_address(memory) + kAtom - 1) / kAtom * kAtom;
  const uint32_t stages = shared.query + L::kTile, bars = shared_address(barriers);
  shared.keys = {stages, bars, bars + kStages * 8, L::kTile};
  shared.values = {stages + kStages * L::kTile, bars + 2 * kStages * 8, bars + 3 * kStages * 8,
                   L::kTile};
  if (threadIdx.x < kStages) {
    for (const Ring& ring : {shared.keys, shared.values}) {
      init_barrier(ring.full + threadIdx.x * 8, kGroupThreads);
      init_barrier(ring.empty + threadIdx.x * 8, (kThreads - kGroupThreads) / 32);
    }
    fence_for_matrix_unit();
  }
  __syncthreads();
  const int32_t last = (tile.first + tile.rows - 1) / group;
  const int32_t end = block_end(tile.before + last, tile.block_length, tile.seq_len);
  if (threadIdx.x < kGroupThreads) {
    give_registers<40>();
    Fetcher<kHead>(args, tile, shared).run(end);
  } else {
    take_registers<232>();
    Rows<kDtype, kHead>(args, tile, group, shared).run(end);
  }
#endif
}

template <Dtype kDtype, int kHead>
int launch(const BlockCausalArgs& args, cudaStream_t stream) {
  return launch_tiles(hopper_kernel<kDtype, kHead>, args, kRows, kThreads,
                      HopperLayout<kHead>::kBytes, stream);
}

}  // namespace

bool hopper_suits(const BlockCausalArgs& args) {
  if (args.head_size != 64 && args.head_size != 128) return false;
  // Keys and values are found together.
  if (args.key_page_stride != args.value_page_stride ||
      args.key_token_stride != args.value_token_stride ||
      args.key_head_stride != args.value_head_stride)
    return false;
  // Half-empty tiles are better served by smaller ones.
  if (args.tokens * (args.heads / args.kv_heads) < args.requests * (kRows / 2)) return false;
  int major = 0;
  return device_attribute(cudaDevAttrComputeCapabilityMajor, major) == cudaSuccess && major == 9;
}

int block_causal_attention_hopper(const BlockCausalArgs& args, cudaStream_t stream) {
  const bool wide = args.head_size == 128;
  if (args.dtype == Dtype::kBFloat16)
    return wide ? launch<Dtype::kBFloat16, 128>(args, stream)
                : launch<Dtype::kBFloat16, 64>(args, stream);
  return wide ? launch<Dtype::kFloat16, 128>(args, stream)
              : launch<Dtype::kFloat16, 64>(args, stream);
}

}  // namespace vllm_diffusion
