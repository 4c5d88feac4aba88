// torch.ops.vllm_diffusion.quantize_rows: checks, device guard, stream, registration.
#include "binding.h"
#include "binding_cuda.h"
#include "quantize_rows.h"

namespace vllm_diffusion {

#ifdef USE_CUDA
namespace {

void quantize_rows(const Tensor& input, bool gated, const Tensor& out, const Tensor& scale) {
  const CudaScope scope(input);
  QuantizeRowsArgs args = {};
  args.dtype = half_dtype(input, "input");
  args.gated = gated;
  STD_TORCH_CHECK(input.dim() == 2 && input.stride(1) == 1,
                  "input must have two dimensions, the last one contiguous");
  args.rows = input.size(0);
  const int64_t width = input.size(1), sides = gated ? 2 : 1;
  args.columns = width / sides;
  STD_TORCH_CHECK(
      width >= 8 * sides && width % (8 * sides) == 0 && args.columns <= kQuantizeMaxColumns,
      "input's columns must be a multiple of ", 8 * sides, " and at most ",
      kQuantizeMaxColumns * sides, ", not ", width);
  args.stride = args.rows > 1 ? input.stride(0) : width;
  STD_TORCH_CHECK(args.stride >= width && args.stride % 8 == 0 && begins_at(input, 16),
                  "the rows of input must begin at multiples of 16 bytes");
  check_eight_bits(out, "out", args.rows, args.columns, input);
  check_vector(scale, "scale", ScalarType::Float, args.rows, input);
  args.input = input.data_ptr();
  args.out = out.data_ptr();
  args.scale = data<float>(scale);
  if (args.rows == 0) return;
  scope.check(quantize_rows_cuda(args, scope.stream()));
}

}  // namespace
#endif

STABLE_TORCH_LIBRARY_FRAGMENT(vllm_diffusion, m) {
  m.def("quantize_rows(Tensor input, bool gated, Tensor(a!) out, Tensor(b!) scale) -> ()");
}

VLLM_DIFFUSION_CUDA_OP("quantize_rows", &quantize_rows)

}  // namespace vllm_diffusion
