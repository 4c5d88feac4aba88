// quantize_rows on CUDA: a block a row, which it keeps in registers. It stands between two products:
// its block is in place before the first one ends, and lets the second one start to read its weights.
#include "quantize_rows.h"

#include <cuda_runtime.h>

#include "cuda/eight_bits.cuh"
#include "cuda/launch.cuh"
#include "cuda/mma.cuh"

namespace vllm_diffusion {
namespace {

constexpr int kPiece = 8;  // entries of 16 bytes
constexpr int kMostThreads = 512;
constexpr int kMostPieces = kQuantizeMaxColumns / kPiece / kMostThreads;  // of a thread

template <Dtype kDtype>
__device__ __forceinline__ uint32_t gate(uint32_t gates, uint32_t ups) {
  const float2 x = unpack<kDtype>(gates), up = unpack<kDtype>(ups);
  const float2 act =
      unpack<kDtype>(pack<kDtype>(x.x / (1.0f + __expf(-x.x)), x.y / (1.0f + __expf(-x.y))));
  return pack<kDtype>(act.x * up.x, act.y * up.y);
}

template <Dtype kDtype, bool kGated>
__global__ void __launch_bounds__(kMostThreads) quantize_rows_kernel(QuantizeRowsArgs args) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
#endif
  __shared__ float scratch[kMostThreads / kWarp];
  const int pieces = static_cast<int>(args.columns) / kPiece;
  const int64_t row = blockIdx.x;
  const auto* input = static_cast<const uint4*>(args.input) + row * (args.stride / kPiece);
  uint4 held[kMostPieces];
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < kMostPieces; ++i) {
    const int piece = static_cast<int>(threadIdx.x) + i * static_cast<int>(blockDim.x);
    if (piece >= pieces) continue;
    uint4 x = input[piece];
    if constexpr (kGated) {
      const uint4 up = input[pieces + piece];
      x = make_uint4(gate<kDtype>(x.x, up.x), gate<kDtype>(x.y, up.y), gate<kDtype>(x.z, up.z),
                     gate<kDtype>(x.w, up.w));
    }
    held[i] = x;
    const uint32_t words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (const uint32_t word : words) {
      const float2 pair = unpack<kDtype>(word);
      largest = fmaxf(largest, fmaxf(fabsf(pair.x), fabsf(pair.y)));
    }
  }
  const float scale = row_scale(block_largest(largest, scratch));
  if (threadIdx.x == 0) args.scale[row] = scale;
  auto* out = static_cast<uint2*>(args.out) + row * pieces;
#pragma unroll
  for (int i = 0; i < kMostPieces; ++i) {
    const int piece = static_cast<int>(threadIdx.x) + i * static_cast<int>(blockDim.x);
    if (piece >= pieces) continue;
    const uint32_t words[4] = {held[i].x, held[i].y, held[i].z, held[i].w};
    uint32_t halves[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float2 pair = unpack<kDtype>(words[k]);
      halves[k] = pack_e4m3(pair.x / scale, pair.y / scale);
    }
    out[piece] = make_uint2(halves[0] | halves[1] << 16, halves[2] | halves[3] << 16);
  }
}

template <Dtype kDtype>
cudaError_t launch(const QuantizeRowsArgs& args, cudaStream_t stream) {
  const int64_t warps = (args.columns / kPiece + kWarp - 1) / kWarp;
  const auto threads =
      static_cast<unsigned>(warps * kWarp < kMostThreads ? warps * kWarp : kMostThreads);
  const auto kernel =
      args.gated ? quantize_rows_kernel<kDtype, true> : quantize_rows_kernel<kDtype, false>;
  return launch_close_behind(kernel, dim3(static_cast<unsigned>(args.rows)), threads, 0, stream,
                             args);
}

}  // namespace

int quantize_rows_cuda(const QuantizeRowsArgs& args, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  return args.dtype == Dtype::kBFloat16 ? launch<Dtype::kBFloat16>(args, on)
                                        : launch<Dtype::kFloat16>(args, on);
}

}  // namespace vllm_diffusion
