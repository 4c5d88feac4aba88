// quantize_rows on CUDA: a block a row, which it keeps in registers. It stands between two
// products: its block is in place before the first one ends, and lets the second one start to read
// its weights.
#include "quantize_rows.h"

#include <cuda_runtime.h>

#include "cuda/eight_bits.cuh"
#include "cuda/launch.cuh"

namespace vllm_diffusion {
namespace {

constexpr int kPiece = 8;  // entries of 16 bytes
constexpr int kMostThreads = 512;

template <Dtype kDtype>
__device__ __forceinline__ uint32_t gate(uint32_t gates, uint32_t ups) {
  const float2 x = unpack<kDtype>(gates), up = unpack<kDtype>(ups);
  const float2 act = unpack<kDtype>(
      pack<kDtype>(__fdividef(x.x, 1.0f + __expf(-x.x)), __fdividef(x.y, 1.0f + __expf(-x.y))));
  return pack<kDtype>(act.x * up.x, act.y * up.y);
}

// kPieces: most pieces of a thread, all of which are on their way before the first is looked at.
template <Dtype kDtype, bool kGated, int kPieces>
__global__ void __launch_bounds__(kMostThreads, kPieces > 4 ? 1 : 2)
    quantize_rows_kernel(QuantizeRowsArgs args) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
#endif
  __shared__ float scratch[kMostThreads / kWarp];
  const int pieces = static_cast<int>(args.columns) / kPiece;
  const int64_t row = blockIdx.x;
  const auto* input = static_cast<const uint4*>(args.input) + row * (args.stride / kPiece);
  uint4 first[kPieces], second[kPieces];
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const int piece = static_cast<int>(threadIdx.x) + i * static_cast<int>(blockDim.x);
    first[i] = second[i] = make_uint4(0, 0, 0, 0);
    if (piece < pieces) first[i] = input[piece];
    if (kGated && piece < pieces) second[i] = input[pieces + piece];
  }
  uint32_t held[kPieces][4];
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const uint32_t x[4] = {first[i].x, first[i].y, first[i].z, first[i].w};
    const uint32_t up[4] = {second[i].x, second[i].y, second[i].z, second[i].w};
#pragma unroll
    for (int k = 0; k < 4; ++k) held[i][k] = kGated ? gate<kDtype>(x[k], up[k]) : x[k];
    largest = fmaxf(largest, largest_of<kDtype>(held[i]));
  }
  const float scale = row_scale(block_largest(largest, scratch));
  const Quotient quotient(scale);
  if (threadIdx.x == 0) args.scale[row] = scale;
  auto* out = static_cast<uint2*>(args.out) + row * pieces;
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const int piece = static_cast<int>(threadIdx.x) + i * static_cast<int>(blockDim.x);
    if (piece < pieces) out[piece] = quantized<kDtype>(held[i], quotient);
  }
}

template <Dtype kDtype, bool kGated>
auto kernel_for(int64_t pieces) {
  switch (pieces) {
    case 1:
      return quantize_rows_kernel<kDtype, kGated, 1>;
    case 2:
      return quantize_rows_kernel<kDtype, kGated, 2>;
    case 3:
      return quantize_rows_kernel<kDtype, kGated, 3>;
    case 4:
      return quantize_rows_kernel<kDtype, kGated, 4>;
    default:
      return quantize_rows_kernel<kDtype, kGated, kQuantizeMaxColumns / kPiece / kMostThreads>;
  }
}

template <Dtype kDtype>
cudaError_t launch(const QuantizeRowsArgs& args, cudaStream_t stream) {
  const int64_t pieces = args.columns / kPiece;
  const int64_t of_a_thread = (pieces + kMostThreads - 1) / kMostThreads;
  const int64_t warps = ((pieces + of_a_thread - 1) / of_a_thread + kWarp - 1) / kWarp;
  const auto kernel =
      args.gated ? kernel_for<kDtype, true>(of_a_thread) : kernel_for<kDtype, false>(of_a_thread);
  return launch_close_behind(kernel, dim3(static_cast<unsigned>(args.rows)),
                             static_cast<unsigned>(warps * kWarp), 0, stream, args);
}

}  // namespace

int quantize_rows_cuda(const QuantizeRowsArgs& args, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  return args.dtype == Dtype::kBFloat16 ? launch<Dtype::kBFloat16>(args, on)
                                        : launch<Dtype::kFloat16>(args, on);
}

}  // namespace vllm_diffusion
