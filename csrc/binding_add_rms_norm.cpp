// torch.ops.vllm_diffusion.add_rms_norm: checks, device guard, stream, registration.
#include "add_rms_norm.h"
#include "binding.h"
#include "binding_cuda.h"

namespace vllm_diffusion {

#ifdef USE_CUDA
namespace {

void add_rms_norm(const Tensor& input, const Tensor& residual, const Tensor& weight,
                  double epsilon) {
  const CudaScope scope(input);
  const ScalarType type = input.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::BFloat16 || type == ScalarType::Half,
                  "input must be bfloat16 or float16");
  STD_TORCH_CHECK(input.dim() == 2 && input.is_contiguous(),
                  "input must have two dimensions and be contiguous");
  AddRmsNormArgs args = {};
  args.dtype = type == ScalarType::BFloat16 ? Dtype::kBFloat16 : Dtype::kFloat16;
  args.rows = input.size(0);
  args.columns = input.size(1);
  STD_TORCH_CHECK(args.columns >= 8 && args.columns % 8 == 0 && args.columns <= kNormMaxColumns,
                  "input's columns must be a multiple of 8 and at most ", kNormMaxColumns, ", not ",
                  args.columns);
  STD_TORCH_CHECK(residual.is_cuda() && residual.get_device_index() == input.get_device_index(),
                  "residual must be on the device of input");
  STD_TORCH_CHECK(residual.scalar_type() == type && residual.dim() == 2 &&
                      residual.size(0) == args.rows && residual.size(1) == args.columns &&
                      residual.is_contiguous(),
                  "residual must have input's dtype and shape and be contiguous");
  check_vector(weight, "weight", type, args.columns, input);
  args.input = input.data_ptr();
  args.residual = residual.data_ptr();
  args.weight = weight.data_ptr();
  args.epsilon = static_cast<float>(epsilon);
  const auto begins = [](const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; };
  STD_TORCH_CHECK(begins(args.input) && begins(args.residual) && begins(args.weight),
                  "input, residual and weight must begin at multiples of 16 bytes");
  if (args.rows == 0) return;
  scope.check(add_rms_norm_cuda(args, scope.stream()));
}

}  // namespace
#endif

STABLE_TORCH_LIBRARY_FRAGMENT(vllm_diffusion, m) {
  m.def("add_rms_norm(Tensor(a!) input, Tensor(b!) residual, Tensor weight, float epsilon) -> ()");
}

#ifdef USE_CUDA
STABLE_TORCH_LIBRARY_IMPL(vllm_diffusion, CUDA, m) {
  m.impl("add_rms_norm", TORCH_BOX(&add_rms_norm));
}
#endif

}  // namespace vllm_diffusion
