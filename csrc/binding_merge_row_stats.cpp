// torch.ops.vllm_diffusion.merge_row_stats: checks, device guard, stream, registration.
#include <tuple>

#include "binding.h"
#include "binding_cuda.h"
#include "merge_row_stats.h"

namespace vllm_diffusion {
namespace {

using Result = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Checks everything and allocates the outputs; the caller launches.
Result prepare(const Tensor& parts, const std::optional<Tensor>& active, int64_t banned,
               MergeRowStatsArgs& args) {
  STD_TORCH_CHECK(parts.dim() == 3 && parts.size(0) >= 1 && parts.size(2) == kShareNumbers,
                  "parts must have the dimensions [shares, rows, ", kShareNumbers, "]");
  STD_TORCH_CHECK(parts.scalar_type() == ScalarType::Float, "parts must be float32");
  STD_TORCH_CHECK(parts.is_contiguous(), "parts must be contiguous");
  STD_TORCH_CHECK(banned >= -1, "banned must be -1 or an id, not ", banned);
  args.shares = parts.size(0);
  args.rows = parts.size(1);
  if (active) check_vector(*active, "active", ScalarType::Bool, args.rows, parts);
  const auto empty = [&](ScalarType type) {
    return torch::stable::new_empty(parts, {args.rows}, type);
  };
  Result out = {empty(ScalarType::Long),  empty(ScalarType::Float), empty(ScalarType::Float),
                empty(ScalarType::Float), empty(ScalarType::Float), empty(ScalarType::Float)};
  args.parts = data<const float>(parts);
  args.active = active ? data<const bool>(*active) : nullptr;
  args.banned = banned;
  args.sample = data<int64_t>(std::get<0>(out));
  args.sample_prob = data<float>(std::get<1>(out));
  args.top1 = data<float>(std::get<2>(out));
  args.top2 = data<float>(std::get<3>(out));
  args.entropy = data<float>(std::get<4>(out));
  args.lse = data<float>(std::get<5>(out));
  return out;
}

Result merge_row_stats_on_cpu(const Tensor& parts, const std::optional<Tensor>& active,
                              int64_t banned) {
  MergeRowStatsArgs args;
  Result out = prepare(parts, active, banned, args);
  merge_row_stats_cpu(args);
  return out;
}

#ifdef USE_CUDA
Result merge_row_stats_on_cuda(const Tensor& parts, const std::optional<Tensor>& active,
                               int64_t banned) {
  const CudaScope scope(parts);
  MergeRowStatsArgs args;
  Result out = prepare(parts, active, banned, args);
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
