// torch.ops.vllm_diffusion.merge_row_stats: checks, device guard, stream, registration.
#include "binding_cuda.h"
#include "binding_row_stats.h"
#include "merge_row_stats.h"

namespace vllm_diffusion {
namespace {

// Checks everything and allocates the outputs; the caller launches.
RowStatsResult prepare(const Tensor& parts, const std::optional<Tensor>& active, int64_t banned,
                       MergeRowStatsArgs& args) {
  STD_TORCH_CHECK(parts.dim() == 3 && parts.size(0) >= 1 && parts.size(2) == kShareNumbers,
                  "parts must have the dimensions [shares, rows, ", kShareNumbers, "]");
  STD_TORCH_CHECK(parts.scalar_type() == ScalarType::Float, "parts must be float32");
  STD_TORCH_CHECK(parts.is_contiguous(), "parts must be contiguous");
  STD_TORCH_CHECK(banned >= -1, "banned must be -1 or an id, not ", banned);
  args.shares = parts.size(0);
  args.rows = parts.size(1);
  if (active) check_vector(*active, "active", ScalarType::Bool, args.rows, parts);
  args.parts = data<const float>(parts);
  args.active = active ? data<const bool>(*active) : nullptr;
  args.banned = banned;
  return make_row_stats_outputs(parts, args.rows, args);
}

RowStatsResult merge_row_stats_on_cpu(const Tensor& parts, const std::optional<Tensor>& active,
                                      int64_t banned) {
  MergeRowStatsArgs args;
  RowStatsResult out = prepare(parts, active, banned, args);
  merge_row_stats_cpu(args);
  return out;
}

#ifdef USE_CUDA
RowStatsResult merge_row_stats_on_cuda(const Tensor& parts, const std::optional<Tensor>& active,
                                       int64_t banned) {
  const CudaScope scope(parts);
  MergeRowStatsArgs args;
  RowStatsResult out = prepare(parts, active, banned, args);
  if (args.rows > 0) scope.check(merge_row_stats_cuda(args, scope.stream()));
  return out;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(vllm_diffusion, m) {
  m.def(
      "merge_row_stats(Tensor parts, Tensor? active, int banned) -> (Tensor sample, "
      "Tensor sample_prob, Tensor top1, Tensor top2, Tensor entropy, Tensor lse)");
}

VLLM_DIFFUSION_CPU_OP("merge_row_stats", &merge_row_stats_on_cpu)
VLLM_DIFFUSION_CUDA_OP("merge_row_stats", &merge_row_stats_on_cuda)

}  // namespace vllm_diffusion
