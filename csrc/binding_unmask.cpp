// torch.ops.vllm_diffusion.unmask: checks, device guard, stream, registration.
#include "binding.h"
#include "binding_cuda.h"
#include "unmask.h"

namespace vllm_diffusion {
namespace {

void check_state(const Tensor& tensor, const char* name, ScalarType type, int64_t slots,
                 int64_t width, const Tensor& like) {
  check_device(tensor, name, like, "token");
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " has the wrong dtype");
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == slots && tensor.size(1) == width, name,
                  " must be [", slots, ", ", width, "] like `canvas`");
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
}

// Checks everything and allocates the output; the caller launches.
Tensor prepare(const Tensor& token, const Tensor& confidence, const Tensor& entropy,
               const std::optional<Tensor>& picked, const Tensor& row_start, const Tensor& slots,
               const Tensor& canvas, const Tensor& masked, const Tensor& unmasked_at,
               const Tensor& step, const Tensor& rule, const Tensor& steps,
               const Tensor& block_length, const Tensor& threshold, UnmaskArgs& args) {
  STD_TORCH_CHECK(token.dim() == 1 && slots.dim() == 1 && canvas.dim() == 2,
                  "token must be [rows], slots [requests] and canvas [slots, width]");
  args.rows = token.size(0);
  args.requests = slots.size(0);
  args.num_slots = canvas.size(0);
  args.width = canvas.size(1);
  STD_TORCH_CHECK(args.width <= kMaxCanvas, "the canvas may be ", kMaxCanvas,
                  " positions wide, not ", args.width);
  STD_TORCH_CHECK(args.rows < INT32_MAX, "too many rows for int32 row_start");
  check_vector(token, "token", ScalarType::Long, args.rows, token);
  check_vector(confidence, "confidence", ScalarType::Float, args.rows, token);
  check_vector(entropy, "entropy", ScalarType::Float, args.rows, token);
  if (picked) check_vector(*picked, "picked", ScalarType::Bool, args.rows, token);
  check_vector(row_start, "row_start", ScalarType::Int, args.requests + 1, token);
  check_vector(slots, "slots", ScalarType::Long, args.requests, token);
  check_state(canvas, "canvas", ScalarType::Long, args.num_slots, args.width, token);
  check_state(masked, "masked", ScalarType::Bool, args.num_slots, args.width, token);
  check_state(unmasked_at, "unmasked_at", ScalarType::Int, args.num_slots, args.width, token);
  check_vector(step, "step", ScalarType::Int, args.num_slots, token);
  check_vector(rule, "rule", ScalarType::Int, args.num_slots, token);
  check_vector(steps, "steps", ScalarType::Int, args.num_slots, token);
  check_vector(block_length, "block_length", ScalarType::Int, args.num_slots, token);
  check_vector(threshold, "threshold", ScalarType::Float, args.num_slots, token);

  Tensor remaining = torch::stable::new_empty(token, {args.requests}, ScalarType::Int);
  args.token = data<const int64_t>(token);
  args.confidence = data<const float>(confidence);
  args.entropy = data<const float>(entropy);
  args.picked = picked ? data<const bool>(*picked) : nullptr;
  args.row_start = data<const int32_t>(row_start);
  args.slots = data<const int64_t>(slots);
  args.canvas = data<int64_t>(canvas);
  args.masked = data<bool>(masked);
  args.unmasked_at = data<int32_t>(unmasked_at);
  args.step = data<int32_t>(step);
  args.rule = data<const int32_t>(rule);
  args.steps = data<const int32_t>(steps);
  args.block_length = data<const int32_t>(block_length);
  args.threshold = data<const float>(threshold);
  args.remaining = data<int32_t>(remaining);
  return remaining;
}

Tensor unmask_on_cpu(const Tensor& token, const Tensor& confidence, const Tensor& entropy,
                     const std::optional<Tensor>& picked, const Tensor& row_start,
                     const Tensor& slots, const Tensor& canvas, const Tensor& masked,
                     const Tensor& unmasked_at, const Tensor& step, const Tensor& rule,
                     const Tensor& steps, const Tensor& block_length, const Tensor& threshold) {
  UnmaskArgs args;
  Tensor remaining = prepare(token, confidence, entropy, picked, row_start, slots, canvas, masked,
                             unmasked_at, step, rule, steps, block_length, threshold, args);
  if (args.requests == 0) return remaining;
  const char* problem = unmask_problem(args);
  STD_TORCH_CHECK(problem == nullptr, "unmask: ", problem);
  unmask_cpu(args, torch_threads());
  return remaining;
}

#ifdef USE_CUDA
Tensor unmask_on_cuda(const Tensor& token, const Tensor& confidence, const Tensor& entropy,
                      const std::optional<Tensor>& picked, const Tensor& row_start,
                      const Tensor& slots, const Tensor& canvas, const Tensor& masked,
                      const Tensor& unmasked_at, const Tensor& step, const Tensor& rule,
                      const Tensor& steps, const Tensor& block_length, const Tensor& threshold) {
  const CudaScope scope(token);
  UnmaskArgs args;
  Tensor remaining = prepare(token, confidence, entropy, picked, row_start, slots, canvas, masked,
                             unmasked_at, step, rule, steps, block_length, threshold, args);
  if (args.requests > 0) scope.check(unmask_cuda(args, scope.stream()));
  return remaining;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(vllm_diffusion, m) {
  m.def(
      "unmask(Tensor token, Tensor confidence, Tensor entropy, Tensor? picked, Tensor row_start, "
      "Tensor slots, Tensor(a!) canvas, Tensor(b!) masked, Tensor(c!) unmasked_at, "
      "Tensor(d!) step, Tensor rule, Tensor steps, Tensor block_length, Tensor threshold) "
      "-> Tensor");
}

VLLM_DIFFUSION_CPU_OP("unmask", &unmask_on_cpu)
VLLM_DIFFUSION_CUDA_OP("unmask", &unmask_on_cuda)

}  // namespace vllm_diffusion
