// torch.ops.vllm_diffusion.add_rms_norm: checks, device guard, stream, registration.
#include "add_rms_norm.h"
#include "binding.h"
#include "binding_cuda.h"

namespace vllm_diffusion {

#ifdef USE_CUDA
namespace {

void add_rms_norm(const Tensor& input, const Tensor& residual, const Tensor& weight, double epsilon,
                  const std::optional<Tensor>& out, const std::optional<Tensor>& scale) {
  const CudaScope scope(input);
  STD_TORCH_CHECK(input.dim() == 2 && input.is_contiguous(),
                  "input must have two dimensions and be contiguous");
  AddRmsNormArgs args = {};
  args.dtype = half_dtype(input, "input");
  args.rows = input.size(0);
  args.columns = input.size(1);
  STD_TORCH_CHECK(args.columns >= 8 && args.columns % 8 == 0 && args.columns <= kNormMaxColumns,
                  "input's columns must be a multiple of 8 and at most ", kNormMaxColumns, ", not ",
                  args.columns);
  check_device(residual, "residual", input, "input");
  const ScalarType type = input.scalar_type();
  STD_TORCH_CHECK(residual.scalar_type() == type && residual.dim() == 2 &&
                      residual.size(0) == args.rows && residual.size(1) == args.columns &&
                      residual.is_contiguous(),
                  "residual must have input's dtype and shape and be contiguous");
  check_vector(weight, "weight", type, args.columns, input);
  args.input = input.data_ptr();
  args.residual = residual.data_ptr();
  args.weight = weight.data_ptr();
  args.epsilon = static_cast<float>(epsilon);
  STD_TORCH_CHECK(begins_at(input, 16) && begins_at(residual, 16) && begins_at(weight, 16),
                  "input, residual and weight must begin at multiples of 16 bytes");
  STD_TORCH_CHECK(out.has_value() == scale.has_value(),
                  "out and scale come together or not at all");
  if (out) {
    check_eight_bits(*out, "out", args.rows, args.columns, input);
    check_vector(*scale, "scale", ScalarType::Float, args.rows, input);
    args.out = out->data_ptr();
    args.scale = data<float>(*scale);
  }
  if (args.rows == 0) return;
  scope.check(add_rms_norm_cuda(args, scope.stream()));
}

}  // namespace
#endif

STABLE_TORCH_LIBRARY_FRAGMENT(vllm_diffusion, m) {
  m.def(
      "add_rms_norm(Tensor(a!) input, Tensor(b!) residual, Tensor weight, float epsilon, "
      "Tensor(c!)? out, Tensor(d!)? scale) -> ()");
}

VLLM_DIFFUSION_CUDA_OP("add_rms_norm", &add_rms_norm)

}  // namespace vllm_diffusion
