// torch.ops.vllm_diffusion.skinny_linear: checks, device guard, stream, registration.
#include "binding.h"
#include "binding_cuda.h"
#include "skinny_linear.h"

namespace vllm_diffusion {

#ifdef USE_CUDA
namespace {

void check_matrix(const Tensor& tensor, const char* name, const Tensor& like) {
  check_device(tensor, name, like, "input");
  STD_TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), name, " must have input's dtype");
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.stride(1) == 1, name,
                  " must have two dimensions, the last one contiguous");
  STD_TORCH_CHECK(begins_at(tensor, 16), name, " must begin at a multiple of 16 bytes");
}

// Checks what is alike with 8 and with 16 bits, and fills it in; `type` is the output's.
SkinnyLinearArgs arguments(const Tensor& input, const Tensor& weight,
                           const std::optional<Tensor>& bias, const Tensor& arrived, bool gated,
                           bool eight, ScalarType type) {
  SkinnyLinearArgs args = {};
  args.eight = eight;
  check_matrix(input, "input", input);
  check_matrix(weight, "weight", input);
  args.tokens = input.size(0);
  args.rows = weight.size(0);
  args.columns = weight.size(1);
  args.gated = gated;
  STD_TORCH_CHECK(args.tokens <= kSkinnyMaxTokens, "input must have ", kSkinnyMaxTokens,
                  " rows at most, not ", args.tokens);
  STD_TORCH_CHECK(input.size(1) == args.columns, "input must have weight's columns, ", args.columns,
                  ", not ", input.size(1));
  const int64_t panel = eight ? 128 : 64, aligned = eight ? 16 : 8;
  STD_TORCH_CHECK(args.columns >= panel && args.columns % panel == 0,
                  "weight's columns must be a multiple of ", panel, ", not ", args.columns);
  STD_TORCH_CHECK(
      args.rows >= 16 && args.rows <= kSkinnyMaxRows && args.rows % (gated ? 16 : 8) == 0,
      "weight's rows must be a multiple of ", gated ? 16 : 8, ", at least 16 and at most ",
      kSkinnyMaxRows, ", not ", args.rows);
  STD_TORCH_CHECK(weight.is_contiguous(), "weight must be contiguous");
  args.input_stride = args.tokens > 1 ? input.stride(0) : args.columns;
  STD_TORCH_CHECK(args.input_stride >= args.columns && args.input_stride % aligned == 0,
                  "the rows of input must begin at multiples of 16 bytes");
  if (bias) check_vector(*bias, "bias", type, args.rows, input);
  STD_TORCH_CHECK(arrived.dim() == 1, "arrived must have one dimension");
  check_vector(arrived, "arrived", ScalarType::Int, arrived.size(0), input);
  STD_TORCH_CHECK(arrived.size(0) >= skinny_linear_tiles(args), "arrived must have ",
                  skinny_linear_tiles(args), " entries, not ", arrived.size(0));
  args.input = input.data_ptr();
  args.weight = weight.data_ptr();
  args.bias = bias ? bias->data_ptr() : nullptr;
  args.arrived = data<int32_t>(arrived);
  return args;
}

int64_t outputs(const SkinnyLinearArgs& args) {
  return args.gated ? args.rows / 2 : args.rows;
}

void run(SkinnyLinearArgs& args, const Tensor& input, const Tensor& out, const CudaScope& scope) {
  if (args.tokens == 0) return;
  args.out = out.data_ptr();
  const Tensor scratch =
      torch::stable::new_empty(input, {skinny_linear_scratch(args)}, ScalarType::Byte);
  scope.check(skinny_linear_cuda(args, scratch.data_ptr(), scope.stream()));
}

Tensor skinny_linear(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                     const Tensor& arrived, bool gated) {
  const CudaScope scope(input);
  const Dtype dtype = half_dtype(input, "input");
  SkinnyLinearArgs args =
      arguments(input, weight, bias, arrived, gated, false, input.scalar_type());
  args.dtype = dtype;
  Tensor out = torch::stable::new_empty(input, {args.tokens, outputs(args)});
  run(args, input, out, scope);
  return out;
}

// One scale for all, or `count` of them.
const float* scales(const Tensor& scale, const char* name, int64_t count, const Tensor& input,
                    int32_t& step) {
  check_device(scale, name, input, "input");
  STD_TORCH_CHECK(scale.scalar_type() == ScalarType::Float, name, " must be float32");
  STD_TORCH_CHECK(scale.is_contiguous() && (scale.numel() == 1 || scale.numel() == count), name,
                  " must be contiguous and have 1 or ", count, " entries, not ", scale.numel());
  step = scale.numel() == 1 ? 0 : 1;
  return data<float>(scale);
}

void skinny_linear_fp8(const Tensor& input, const Tensor& input_scale, const Tensor& weight,
                       const Tensor& weight_scale, const std::optional<Tensor>& bias,
                       const Tensor& arrived, bool gated, const Tensor& out) {
  const CudaScope scope(input);
  STD_TORCH_CHECK(input.scalar_type() == ScalarType::Float8_e4m3fn, "input must be float8_e4m3fn");
  const Dtype dtype = half_dtype(out, "out");
  SkinnyLinearArgs args = arguments(input, weight, bias, arrived, gated, true, out.scalar_type());
  args.dtype = dtype;
  args.input_scale = scales(input_scale, "input_scale", args.tokens, input, args.input_scale_step);
  args.weight_scale =
      scales(weight_scale, "weight_scale", args.rows, input, args.weight_scale_step);
  check_device(out, "out", input, "input");
  STD_TORCH_CHECK(out.dim() == 2 && out.size(0) == args.tokens && out.size(1) == outputs(args) &&
                      out.is_contiguous() && begins_at(out, 4),
                  "out must be [", args.tokens, ", ", outputs(args), "] and contiguous");
  run(args, input, out, scope);
}

}  // namespace
#endif

STABLE_TORCH_LIBRARY_FRAGMENT(vllm_diffusion, m) {
  m.def(
      "skinny_linear(Tensor input, Tensor weight, Tensor? bias, Tensor(a!) arrived, bool gated) "
      "-> Tensor");
  m.def(
      "skinny_linear_fp8(Tensor input, Tensor input_scale, Tensor weight, Tensor weight_scale, "
      "Tensor? bias, Tensor(a!) arrived, bool gated, Tensor(b!) out) -> ()");
}

VLLM_DIFFUSION_CUDA_OP("skinny_linear", &skinny_linear)
VLLM_DIFFUSION_CUDA_OP("skinny_linear_fp8", &skinny_linear_fp8)

}  // namespace vllm_diffusion
