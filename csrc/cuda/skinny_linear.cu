// skinny_linear on CUDA: which kernel, its maps, its launch.
#include "skinny_linear.h"

#include <cuda_runtime.h>

#include "cuda/launch.cuh"
#include "cuda/skinny_linear.cuh"

namespace vllm_diffusion {
namespace {

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// The driver's function, without a link to its library.
EncodeTiled encode_tiled() {
  static const EncodeTiled found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                               12000, cudaEnableDefault, &result);
    const bool there = error == cudaSuccess && result == cudaDriverEntryPointSuccess;
    return there ? reinterpret_cast<EncodeTiled>(function) : nullptr;
  }();
  return found;
}

// What a copy reads; it changes no bits.
CUtensorMapDataType copied_type(const SkinnyLinearArgs& args) {
  if (args.eight) return CU_TENSOR_MAP_DATA_TYPE_UINT8;
  return args.dtype == Dtype::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                        : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
}

// Of a panel: as many as fill 128 bytes.
int64_t panel_columns(const SkinnyLinearArgs& args) {
  return args.eight ? 128 : 64;
}

// A matrix as panels of 128 bytes of a row, copied in boxes of `box_rows` by `box_panels`.
cudaError_t describe(CUtensorMap& map, const SkinnyLinearArgs& args, const void* matrix,
                     int64_t rows, int64_t stride, int box_rows, int box_panels) {
  if (encode_tiled() == nullptr) return cudaErrorNotSupported;
  const int64_t panel = panel_columns(args);
  const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(panel), static_cast<cuuint64_t>(rows),
                               static_cast<cuuint64_t>(args.columns / panel)};
  const cuuint64_t strides[2] = {static_cast<cuuint64_t>(stride * 128 / panel), 128};
  const cuuint32_t box[3] = {static_cast<cuuint32_t>(panel), static_cast<cuuint32_t>(box_rows),
                             static_cast<cuuint32_t>(box_panels)};
  const cuuint32_t every[3] = {1, 1, 1};
  const CUresult result =
      encode_tiled()(&map, copied_type(args), 3, const_cast<void*>(matrix), sizes, strides, box,
                     every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                     CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

int64_t tiles_of(const SkinnyLinearArgs& args) {
  const int64_t rows = args.gated ? args.rows / 2 : args.rows;
  return (rows + kBlockRows - 1) / kBlockRows;
}

int padded_tokens(int64_t tokens) {
  return tokens <= 8 ? 8 : tokens <= 16 ? 16 : tokens <= 32 ? 32 : 64;
}

template <Dtype kDtype, bool kEight, int kTokens, int kDepth, bool kGated>
cudaError_t launch(const SkinnyLinearArgs& args, float* partials, int blocks, cudaStream_t stream) {
  using S = SkinnyShape<kTokens, kDepth, kGated>;
  const auto kernel = skinny_kernel<kDtype, kEight, kTokens, kDepth, kGated>;
  SkinnyParams params = {};
  cudaError_t error =
      describe(params.weight, args, args.weight, args.rows, args.columns, kBlockRows, kDepth);
  if (error == cudaSuccess)
    error =
        describe(params.input, args, args.input, args.tokens, args.input_stride, kTokens, kDepth);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kBytes);
  if (error != cudaSuccess) return error;
  params.out = args.out;
  params.bias = args.bias;
  params.input_scale = args.input_scale;
  params.weight_scale = args.weight_scale;
  params.input_scale_step = args.input_scale_step;
  params.weight_scale_step = args.weight_scale_step;
  params.partials = partials;
  params.arrived = args.arrived;
  params.tokens = static_cast<int32_t>(args.tokens);
  params.rows = static_cast<int32_t>(args.rows);
  params.steps = static_cast<int32_t>((args.columns / panel_columns(args) + kDepth - 1) / kDepth);
  params.tiles = static_cast<int32_t>(tiles_of(args));
  const int64_t units = static_cast<int64_t>(params.tiles) * params.steps;
  if (units > INT32_MAX) return cudaErrorInvalidConfiguration;

  return launch_close_behind(kernel, dim3(static_cast<unsigned>(units < blocks ? units : blocks)),
                             kMultipliers + 32, S::kBytes, stream, params);
}

// Longer pieces of a row of W suit the memory; they leave less room for x.
template <Dtype kDtype, bool kEight, bool kGated>
cudaError_t launch(const SkinnyLinearArgs& args, float* partials, int blocks, cudaStream_t stream) {
  constexpr int kDeep = kGated ? 2 : 4;
  switch (padded_tokens(args.tokens)) {
    case 8:
      return launch<kDtype, kEight, 8, kDeep, kGated>(args, partials, blocks, stream);
    case 16:
      return launch<kDtype, kEight, 16, kDeep, kGated>(args, partials, blocks, stream);
    case 32:
      return launch<kDtype, kEight, 32, 2, kGated>(args, partials, blocks, stream);
    default:
      return launch<kDtype, kEight, 64, 2, kGated>(args, partials, blocks, stream);
  }
}

template <Dtype kDtype>
cudaError_t launch(const SkinnyLinearArgs& args, float* partials, int blocks, cudaStream_t stream) {
  if (args.eight)
    return args.gated ? launch<kDtype, true, true>(args, partials, blocks, stream)
                      : launch<kDtype, true, false>(args, partials, blocks, stream);
  return args.gated ? launch<kDtype, false, true>(args, partials, blocks, stream)
                    : launch<kDtype, false, false>(args, partials, blocks, stream);
}

}  // namespace

// Two slots of sums for each block: it may share the first of its tiles, and the last.
int64_t skinny_linear_scratch(const SkinnyLinearArgs& args) {
  int blocks = 0;
  if (device_attribute(cudaDevAttrMultiProcessorCount, blocks) != cudaSuccess) return 0;
  return int64_t{2} * blocks * kBlockRows * (args.gated ? 2 : 1) * padded_tokens(args.tokens) *
         static_cast<int64_t>(sizeof(float));
}

int64_t skinny_linear_tiles(const SkinnyLinearArgs& args) {
  return tiles_of(args);
}

int skinny_linear_cuda(const SkinnyLinearArgs& args, void* scratch, void* stream) {
  int major = 0, blocks = 0;
  cudaError_t error = device_attribute(cudaDevAttrComputeCapabilityMajor, major);
  if (error == cudaSuccess) error = device_attribute(cudaDevAttrMultiProcessorCount, blocks);
  if (error != cudaSuccess) return error;
  if (major != 9) return cudaErrorNotSupported;
  const auto on = static_cast<cudaStream_t>(stream);
  auto* partials = static_cast<float*>(scratch);
  return args.dtype == Dtype::kBFloat16 ? launch<Dtype::kBFloat16>(args, partials, blocks, on)
                                        : launch<Dtype::kFloat16>(args, partials, blocks, on);
}

}  // namespace vllm_diffusion
