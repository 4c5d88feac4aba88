// torch.ops.vllm_diffusion.row_stats: checks, device guard, stream, registration.
#include "binding_row_stats.h"
#include "binding_cuda.h"

namespace vllm_diffusion {
namespace {

// Checks everything and allocates the outputs; the caller launches.
RowStatsResult prepare(const Tensor& logits, const Tensor& temperature,
                       const Tensor& stat_temperature, const Tensor& seed, const Tensor& offset,
                       const std::optional<Tensor>& active, int64_t banned, RowStatsArgs& args) {
  STD_TORCH_CHECK(logits.dim() == 2, "logits must have two dimensions, [rows, vocab]");
  const int64_t rows = logits.size(0), vocab = logits.size(1);
  args.dtype = float_dtype(logits, "logits");
  STD_TORCH_CHECK(vocab >= 1 && vocab <= (1 << 30), "vocab must lie in 1 ... 2^30, not ", vocab);
  STD_TORCH_CHECK(vocab == 1 || logits.stride(1) == 1, "the ids of a row must be contiguous");
  STD_TORCH_CHECK(rows <= 1 || logits.stride(0) >= vocab, "the rows of logits must not overlap");
  STD_TORCH_CHECK(banned >= -1 && banned < vocab, "banned must be -1 or an id below ", vocab,
                  ", not ", banned);
  STD_TORCH_CHECK(banned < 0 || vocab > 1, "banned leaves no id to choose");
  check_vector(temperature, "temperature", ScalarType::Float, rows, logits);
  check_vector(stat_temperature, "stat_temperature", ScalarType::Float, rows, logits);
  check_vector(seed, "seed", ScalarType::Long, rows, logits);
  check_vector(offset, "offset", ScalarType::Long, rows, logits);
  if (active) check_vector(*active, "active", ScalarType::Bool, rows, logits);

  args.logits = logits.data_ptr();
  args.rows = rows;
  args.vocab = vocab;
  args.row_stride = rows > 1 ? logits.stride(0) : vocab;
  args.temperature = data<const float>(temperature);
  args.stat_temperature = data<const float>(stat_temperature);
  args.seed = data<const int64_t>(seed);
  args.offset = data<const int64_t>(offset);
  args.active = active ? data<const bool>(*active) : nullptr;
  args.banned = banned;
  return make_row_stats_outputs(logits, rows, args);
}

RowStatsResult row_stats_on_cpu(const Tensor& logits, const Tensor& temperature,
                                const Tensor& stat_temperature, const Tensor& seed,
                                const Tensor& offset, const std::optional<Tensor>& active,
                                int64_t banned) {
  RowStatsArgs args;
  RowStatsResult out =
      prepare(logits, temperature, stat_temperature, seed, offset, active, banned, args);
  if (args.rows > 0) row_stats_cpu(args, torch_threads());
  return out;
}

#ifdef USE_CUDA
RowStatsResult row_stats_on_cuda(const Tensor& logits, const Tensor& temperature,
                                 const Tensor& stat_temperature, const Tensor& seed,
                                 const Tensor& offset, const std::optional<Tensor>& active,
                                 int64_t banned) {
  const CudaScope scope(logits);
  RowStatsArgs args;
  RowStatsResult out =
      prepare(logits, temperature, stat_temperature, seed, offset, active, banned, args);
  if (args.rows == 0) return out;
  const int64_t bytes = row_stats_cuda_scratch(args.rows, args.vocab);
  const Tensor scratch = torch::stable::new_empty(logits, {bytes}, ScalarType::Byte);
  scope.check(row_stats_cuda(args, scratch.data_ptr(), scope.stream()));
  return out;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(vllm_diffusion, m) {
  m.def(
      "row_stats(Tensor logits, Tensor temperature, Tensor stat_temperature, Tensor seed, "
      "Tensor offset, Tensor? active, int banned) -> (Tensor sample, Tensor sample_prob, "
      "Tensor top1, Tensor top2, Tensor entropy, Tensor lse)");
}

VLLM_DIFFUSION_CPU_OP("row_stats", &row_stats_on_cpu)
VLLM_DIFFUSION_CUDA_OP("row_stats", &row_stats_on_cuda)

}  // namespace vllm_diffusion
