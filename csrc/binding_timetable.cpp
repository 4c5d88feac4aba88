// torch.ops.vllm_diffusion.timetable: checks, device guard, stream, registration.
#include "binding.h"
#include "binding_cuda.h"
#include "timetable.h"

namespace vllm_diffusion {
namespace {

// Checks everything and allocates the output; the caller launches.
Tensor prepare(const Tensor& step, const Tensor& steps, const Tensor& eps, TimetableArgs& args) {
  STD_TORCH_CHECK(step.dim() == 1, "step must have one dimension, [requests]");
  args.requests = step.size(0);
  check_vector(step, "step", ScalarType::Int, args.requests, step);
  check_vector(steps, "steps", ScalarType::Int, args.requests, step);
  check_vector(eps, "eps", ScalarType::Float, args.requests, step);
  Tensor out = torch::stable::new_empty(eps, {args.requests});
  args.step = data<const int32_t>(step);
  args.steps = data<const int32_t>(steps);
  args.eps = data<const float>(eps);
  args.out = data<float>(out);
  return out;
}

Tensor timetable_on_cpu(const Tensor& step, const Tensor& steps, const Tensor& eps) {
  TimetableArgs args;
  Tensor out = prepare(step, steps, eps, args);
  timetable_cpu(args);
  return out;
}

#ifdef USE_CUDA
Tensor timetable_on_cuda(const Tensor& step, const Tensor& steps, const Tensor& eps) {
  const CudaScope scope(step);
  TimetableArgs args;
  Tensor out = prepare(step, steps, eps, args);
  if (args.requests > 0) scope.check(timetable_cuda(args, scope.stream()));
  return out;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(vllm_diffusion, m) {
  m.def("timetable(Tensor step, Tensor steps, Tensor eps) -> Tensor");
}

VLLM_DIFFUSION_CPU_OP("timetable", &timetable_on_cpu)
VLLM_DIFFUSION_CUDA_OP("timetable", &timetable_on_cuda)

}  // namespace vllm_diffusion
