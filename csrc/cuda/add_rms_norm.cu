// add_rms_norm on CUDA: a block a row. It is small, and between two products: its block is in place
// before the first one ends, and lets the second one start to read its weights.
#include "add_rms_norm.h"

#include <cuda_runtime.h>

#include "cuda/eight_bits.cuh"
#include "cuda/launch.cuh"
#include "cuda/mma.cuh"

namespace vllm_diffusion {
namespace {

constexpr int kPiece = 8;  // entries of 16 bytes
constexpr int kMostWarps = kNormMaxColumns / kPiece / 32;

template <Dtype kDtype>
__device__ __forceinline__ uint32_t rounded(float2 pair) {
  return pack<kDtype>(pair.x, pair.y);
}

// Eight numbers of a row as float8_e4m3fn, and by the first thread the row's scale.
template <Dtype kDtype>
__device__ __forceinline__ void quantize(const AddRmsNormArgs& args, const uint32_t (&row)[4],
                                         bool mine, int64_t at, float* scratch) {
  const float scale = row_scale(block_largest(mine ? largest_of<kDtype>(row) : 0.0f, scratch));
  if (threadIdx.x == 0) args.scale[blockIdx.x] = scale;
  if (mine) static_cast<uint2*>(args.out)[at] = quantized<kDtype>(row, Quotient(scale));
}

// Several blocks of rows of up to 4096 entries fit a multiprocessor, so that some of them read
// while others reduce.
template <Dtype kDtype, bool kQuantize, int kThreads>
__global__ void __launch_bounds__(kThreads, kThreads > 512 ? 1 : 3)
    add_rms_norm_kernel(AddRmsNormArgs args) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
  __shared__ float squares[kMostWarps], scratch[kMostWarps];
  const int pieces = static_cast<int>(args.columns) / kPiece;
  const int thread = static_cast<int>(threadIdx.x);
  const bool mine = thread < pieces;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * pieces + thread;
  auto* input = static_cast<uint4*>(args.input) + at;
  auto* residual = static_cast<uint4*>(args.residual) + at;
  uint4 weight = {}, added = {}, before = {};
  if (mine) weight = static_cast<const uint4*>(args.weight)[thread];
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
  if (mine) {
    added = *input;
    before = *residual;
  }
  const uint32_t w[4] = {weight.x, weight.y, weight.z, weight.w};
  const uint32_t a[4] = {added.x, added.y, added.z, added.w};
  uint32_t b[4] = {before.x, before.y, before.z, before.w};
  float2 sum[4];
  float square = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 x = unpack<kDtype>(a[i]), y = unpack<kDtype>(b[i]);
    sum[i] = make_float2(x.x + y.x, x.y + y.y);
    square += sum[i].x * sum[i].x + sum[i].y * sum[i].y;
    b[i] = rounded<kDtype>(sum[i]);
  }
  if (mine) *residual = make_uint4(b[0], b[1], b[2], b[3]);
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) square += __shfl_xor_sync(0xffffffffu, square, lanes);
  if (thread % 32 == 0) squares[thread / 32] = square;
  __syncthreads();
  square = 0.0f;
  for (int warp = 0; warp < static_cast<int>(blockDim.x) / 32; ++warp) square += squares[warp];
  if (!kQuantize && !mine) return;
  const float scale = rsqrtf(square / static_cast<float>(args.columns) + args.epsilon);
  uint32_t out[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 x =
        unpack<kDtype>(rounded<kDtype>(make_float2(sum[i].x * scale, sum[i].y * scale)));
    const float2 by = unpack<kDtype>(w[i]);
    out[i] = rounded<kDtype>(make_float2(x.x * by.x, x.y * by.y));
  }
  if (mine) *input = make_uint4(out[0], out[1], out[2], out[3]);
  if constexpr (kQuantize) quantize<kDtype>(args, out, mine, at, scratch);
}

template <Dtype kDtype, int kThreads>
auto kernel_for(const AddRmsNormArgs& args) {
  return args.out == nullptr ? add_rms_norm_kernel<kDtype, false, kThreads>
                             : add_rms_norm_kernel<kDtype, true, kThreads>;
}

template <Dtype kDtype>
auto kernel_for(const AddRmsNormArgs& args) {
  return args.columns > 512 * kPiece ? kernel_for<kDtype, kMostWarps * 32>(args)
                                     : kernel_for<kDtype, 512>(args);
}

}  // namespace

int add_rms_norm_cuda(const AddRmsNormArgs& args, void* stream) {
  const auto kernel = args.dtype == Dtype::kBFloat16 ? kernel_for<Dtype::kBFloat16>(args)
                                                     : kernel_for<Dtype::kFloat16>(args);
  const auto threads = static_cast<unsigned>((args.columns / kPiece + 31) / 32 * 32);
  return launch_close_behind(kernel, dim3(static_cast<unsigned>(args.rows)), threads, 0,
                             static_cast<cudaStream_t>(stream), args);
}

}  // namespace vllm_diffusion
