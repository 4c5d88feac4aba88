// torch.ops.vllm_diffusion.noise: checks, device guard, stream, registration.
#include "binding.h"
#include "binding_cuda.h"
#include "noise.h"

namespace vllm_diffusion {
namespace {

template <typename T>
Strided<T> strided(const Tensor& tensor, const char* name, ScalarType type, const Tensor& like) {
  check_device(tensor, name, like, "position");
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " has the wrong dtype");
  STD_TORCH_CHECK(
      tensor.dim() == 2 && tensor.size(0) == like.size(0) && tensor.size(1) == like.size(1), name,
      " must be [", like.size(0), ", ", like.size(1), "] like position");
  return {data<const T>(tensor), tensor.stride(0), tensor.stride(1)};
}

// Checks everything and allocates the output; the caller launches.
Tensor prepare(const Tensor& seed, const Tensor& position, const Tensor& step, int64_t step_bits,
               bool gumbel, NoiseArgs& args) {
  STD_TORCH_CHECK(position.dim() == 2, "position must have two dimensions, [requests, width]");
  STD_TORCH_CHECK(step_bits >= 0 && step_bits < 32, "step_bits must lie in 0 ... 31, not ",
                  step_bits);
  args.position = strided<int64_t>(position, "position", ScalarType::Long, position);
  args.seed = strided<int64_t>(seed, "seed", ScalarType::Long, position);
  args.step = strided<int32_t>(step, "step", ScalarType::Int, position);
  args.rows = position.size(0);
  args.columns = position.size(1);
  args.step_bits = static_cast<int>(step_bits);
  args.gumbel = gumbel;
  Tensor out = torch::stable::new_empty(position, {args.rows, args.columns}, ScalarType::Double);
  args.out = data<double>(out);
  return out;
}

Tensor noise_on_cpu(const Tensor& seed, const Tensor& position, const Tensor& step,
                    int64_t step_bits, bool gumbel) {
  NoiseArgs args;
  Tensor out = prepare(seed, position, step, step_bits, gumbel, args);
  if (args.rows * args.columns > 0) noise_cpu(args, torch_threads());
  return out;
}

#ifdef USE_CUDA
Tensor noise_on_cuda(const Tensor& seed, const Tensor& position, const Tensor& step,
                     int64_t step_bits, bool gumbel) {
  const CudaScope scope(position);
  NoiseArgs args;
  Tensor out = prepare(seed, position, step, step_bits, gumbel, args);
  if (args.rows * args.columns > 0) scope.check(noise_cuda(args, scope.stream()));
  return out;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(vllm_diffusion, m) {
  m.def("noise(Tensor seed, Tensor position, Tensor step, int step_bits, bool gumbel) -> Tensor");
}

VLLM_DIFFUSION_CPU_OP("noise", &noise_on_cpu)
VLLM_DIFFUSION_CUDA_OP("noise", &noise_on_cuda)

}  // namespace vllm_diffusion
