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

Tensor skinny_linear(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                     const Tensor& arrived, bool gated) {
  const CudaScope scope(input);
  SkinnyLinearArgs args = {};
  args.dtype = half_dtype(input, "input");
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
  STD_TORCH_CHECK(args.columns >= 64 && args.columns % 64 == 0,
                  "weight's columns must be a multiple of 64, not ", args.columns);
  STD_TORCH_CHECK(
      args.rows >= 16 && args.rows <= kSkinnyMaxRows && args.rows % (gated ? 16 : 8) == 0,
      "weight's rows must be a multiple of ", gated ? 16 : 8, ", at least 16 and at most ",
      kSkinnyMaxRows, ", not ", args.rows);
  STD_TORCH_CHECK(weight.is_contiguous(), "weight must be contiguous");
  args.input_stride = args.tokens > 1 ? input.stride(0) : args.columns;
  STD_TORCH_CHECK(args.input_stride >= args.columns && args.input_stride % 8 == 0,
                  "the rows of input must begin at multiples of 16 bytes");
  if (bias) check_vector(*bias, "bias", input.scalar_type(), args.rows, input);
  STD_TORCH_CHECK(arrived.dim() == 1, "arrived must have one dimension");
  check_vector(arrived, "arrived", ScalarType::Int, arrived.size(0), input);
  STD_TORCH_CHECK(arrived.size(0) >= skinny_linear_tiles(args), "arrived must have ",
                  skinny_linear_tiles(args), " entries, not ", arrived.size(0));

  Tensor out = torch::stable::new_empty(input, {args.tokens, gated ? args.rows / 2 : args.rows});
  if (args.tokens == 0) return out;
  args.input = input.data_ptr();
  args.weight = weight.data_ptr();
  args.bias = bias ? bias->data_ptr() : nullptr;
  args.arrived = data<int32_t>(arrived);
  args.out = out.data_ptr();
  const Tensor scratch =
      torch::stable::new_empty(input, {skinny_linear_scratch(args)}, ScalarType::Byte);
  scope.check(skinny_linear_cuda(args, scratch.data_ptr(), scope.stream()));
  return out;
}

}  // namespace
#endif

STABLE_TORCH_LIBRARY_FRAGMENT(vllm_diffusion, m) {
  m.def(
      "skinny_linear(Tensor input, Tensor weight, Tensor? bias, Tensor(a!) arrived, bool gated) "
      "-> Tensor");
}

VLLM_DIFFUSION_CUDA_OP("skinny_linear", &skinny_linear)

}  // namespace vllm_diffusion
