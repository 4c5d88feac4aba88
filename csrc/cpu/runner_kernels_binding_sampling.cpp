// torch.ops.vllm_diffusion.runner_*: the sampler. Arguments as in runner_kernels_binding_step.cpp.
#include "cpu/runner_kernels_binding.h"

namespace vllm_diffusion {
namespace {

void temperature_op(const Tensor& logits_ptr, int64_t, const Tensor& expanded_idx_mapping_ptr,
                    const Tensor& temperature_ptr, int64_t vocab_size, int64_t) {
  check_problem("apply_temperature",
                apply_temperature(float_logits(logits_ptr, vocab_size),
                                  ints(expanded_idx_mapping_ptr, "expanded_idx_mapping"),
                                  floats(temperature_ptr, "temperature"), temperature_ptr.numel(),
                                  torch_threads()));
}

void min_p_op(const Tensor& logits_ptr, int64_t, const Tensor& expanded_idx_mapping_ptr,
              const Tensor& min_p_ptr, int64_t vocab_size, int64_t) {
  check_problem("apply_min_p",
                apply_min_p(float_logits(logits_ptr, vocab_size),
                            ints(expanded_idx_mapping_ptr, "expanded_idx_mapping"),
                            floats(min_p_ptr, "min_p"), min_p_ptr.numel(), torch_threads()));
}

void gumbel_op(const Tensor& local_argmax_ptr, int64_t, const Tensor& local_max_ptr, int64_t,
               const std::optional<Tensor>& logits_cache_ptr, int64_t, int64_t,
               const std::optional<Tensor>&, const std::optional<Tensor>&, int64_t,
               const Tensor& logits_ptr, int64_t, const Tensor& expanded_idx_mapping_ptr,
               const Tensor& seeds_ptr, const Tensor& pos_ptr, const Tensor& temp_ptr,
               int64_t vocab_size, int64_t block_size, bool is_drafting, bool apply_temperature,
               bool use_fp64, bool) {
  STD_TORCH_CHECK(!logits_cache_ptr, "gumbel_sample: a cache of draft logits is not supported");
  STD_TORCH_CHECK(block_size == kGumbelBlock, "gumbel_sample: BLOCK_SIZE must be ", kGumbelBlock);
  GumbelArgs args;
  args.logits = logits(logits_ptr, vocab_size);
  args.requests = ints(expanded_idx_mapping_ptr, "expanded_idx_mapping");
  args.slots = temp_ptr.numel();
  args.temperature = floats(temp_ptr, "temperature");
  args.seeds = array<const int64_t>(seeds_ptr, "seeds", ScalarType::Long, args.slots);
  args.pos = ints(pos_ptr, "pos");
  STD_TORCH_CHECK(local_argmax_ptr.dim() == 2, "local_argmax must have two dimensions");
  args.blocks = local_argmax_ptr.size(1);
  const int64_t outputs = product(args.logits.rows, args.blocks);
  args.best_token = array<int64_t>(local_argmax_ptr, "local_argmax", ScalarType::Long, outputs);
  args.best_score = array<void>(local_max_ptr, "local_max",
                                use_fp64 ? ScalarType::Double : ScalarType::Float, outputs);
  args.apply_temperature = apply_temperature;
  args.drafting = is_drafting;
  args.fp64 = use_fp64;
  check_problem("gumbel_sample", gumbel_sample(args, torch_threads()));
}

void topk_log_softmax_op(const Tensor& output_ptr, const Tensor& logits_ptr, int64_t,
                         const Tensor& topk_ids_ptr, int64_t, int64_t topk, int64_t vocab_size,
                         int64_t, int64_t) {
  const Logits rows = logits(logits_ptr, vocab_size);
  check_problem("topk_log_softmax",
                topk_log_softmax(
                    array<float>(output_ptr, "output", ScalarType::Float, product(rows.rows, topk)),
                    rows, int_rows(topk_ids_ptr, "topk_ids"), topk, torch_threads()));
}

void ranks_op(const Tensor& output_ptr, const Tensor& logits_ptr, int64_t,
              const Tensor& token_ids_ptr, int64_t vocab_size, int64_t) {
  check_problem("ranks", ranks(ints(output_ptr, "output"), logits(logits_ptr, vocab_size),
                               ints(token_ids_ptr, "token_ids"), torch_threads()));
}

void num_nans_op(const Tensor& logits_ptr, int64_t, const Tensor& num_nans_ptr, int64_t vocab_size,
                 int64_t) {
  check_problem("num_nans", num_nans(logits(logits_ptr, vocab_size), ints(num_nans_ptr, "num_nans"),
                                     torch_threads()));
}

void logprob_ids_op(const Tensor& out_token_ids_ptr, int64_t, const Tensor& out_valid_mask_ptr,
                    int64_t out_valid_mask_stride, const Tensor& sampled_token_ids_ptr,
                    const Tensor& topk_indices_ptr, int64_t, const Tensor& expanded_idx_mapping_ptr,
                    const Tensor& num_per_req_token_ids_ptr, const Tensor& per_req_token_ids_ptr,
                    int64_t, int64_t num_topk, int64_t) {
  LogprobIdsArgs args;
  args.out_ids = int_rows(out_token_ids_ptr, "out_token_ids");
  args.out_valid = array<bool>(out_valid_mask_ptr, "out_valid_mask", ScalarType::Bool,
                               product(args.out_ids.rows, out_valid_mask_stride));
  STD_TORCH_CHECK(out_valid_mask_stride >= args.out_ids.cols, "out_valid_mask is too narrow");
  args.out_valid_stride = out_valid_mask_stride;
  args.sampled = ints(sampled_token_ids_ptr, "sampled_token_ids");
  args.topk = int_rows(topk_indices_ptr, "topk_indices");
  args.requests = ints(expanded_idx_mapping_ptr, "expanded_idx_mapping");
  args.num_custom = ints(num_per_req_token_ids_ptr, "num_per_req_token_ids");
  args.custom = int_rows(per_req_token_ids_ptr, "per_req_token_ids");
  args.num_topk = num_topk;
  check_problem("fill_logprob_token_ids", fill_logprob_token_ids(args));
}

void prompt_ids_op(const Tensor& prompt_logprobs_token_ids_ptr, const Tensor& query_start_loc_ptr,
                   const Tensor& idx_mapping_ptr, const Tensor& num_computed_tokens_ptr,
                   const Tensor& all_token_ids_ptr, int64_t, int64_t) {
  check_problem(
      "prompt_logprobs_token_ids",
      prompt_logprobs_token_ids(ints(prompt_logprobs_token_ids_ptr, "prompt_logprobs_token_ids"),
                                ints(query_start_loc_ptr, "query_start_loc"),
                                ints(idx_mapping_ptr, "idx_mapping"),
                                ints(num_computed_tokens_ptr, "num_computed_tokens"),
                                int_rows(all_token_ids_ptr, "all_token_ids")));
}

void sampling_mask_op(const Tensor& logits_ptr, int64_t, int64_t, const Tensor& cu_num_logits_ptr,
                      const Tensor& num_sampled_tokens_ptr, const Tensor& token_ids_ptr, int64_t,
                      const Tensor& packed_mask_ptr, int64_t packed_mask_row_stride,
                      const Tensor& counts_ptr, int64_t vocab_size, int64_t max_num_kept,
                      int64_t rows_per_request, int64_t) {
  SamplingMaskArgs args;
  args.logits = logits(logits_ptr, vocab_size);
  args.cu_num_logits = ints(cu_num_logits_ptr, "cu_num_logits");
  args.num_sampled = ints(num_sampled_tokens_ptr, "num_sampled_tokens");
  args.token_ids = int_rows(token_ids_ptr, "token_ids");
  STD_TORCH_CHECK(rows_per_request > 0, "ROWS_PER_REQUEST must be positive");
  args.packed = array<uint8_t>(
      packed_mask_ptr, "packed_mask", ScalarType::Byte,
      product(product(args.num_sampled.size, rows_per_request), packed_mask_row_stride));
  args.packed_stride = packed_mask_row_stride;
  args.counts = ints(counts_ptr, "counts");
  args.max_num_kept = max_num_kept;
  args.rows_per_request = rows_per_request;
  check_problem("compact_sampling_mask", compact_sampling_mask(args, torch_threads()));
}

void trace_replay_op(const Tensor& sampled_ptr, const Tensor& idx_mapping_ptr,
                     const Tensor& trace_token_ids_ptr, int64_t, const Tensor& trace_len_ptr,
                     const Tensor& total_len_ptr, const Tensor& prompt_len_ptr) {
  check_problem("trace_replay",
                trace_replay(ints(sampled_ptr, "sampled"), ints(idx_mapping_ptr, "idx_mapping"),
                             int_rows(trace_token_ids_ptr, "trace_token_ids"),
                             ints(trace_len_ptr, "trace_len"), ints(total_len_ptr, "total_len"),
                             ints(prompt_len_ptr, "prompt_len")));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(vllm_diffusion, m) {
  m.def(
      "runner_temperature(Tensor(a!) logits_ptr, int logits_stride, "
      "Tensor expanded_idx_mapping_ptr, Tensor temperature_ptr, int vocab_size, int BLOCK_SIZE) "
      "-> ()");
  m.def(
      "runner_min_p(Tensor(a!) logits_ptr, int logits_stride, Tensor expanded_idx_mapping_ptr, "
      "Tensor min_p_ptr, int vocab_size, int BLOCK_SIZE) -> ()");
  m.def(
      "runner_gumbel_sample(Tensor(a!) local_argmax_ptr, int local_argmax_stride, "
      "Tensor(b!) local_max_ptr, int local_max_stride, Tensor? logits_cache_ptr, "
      "int logits_cache_stride_0, int logits_cache_stride_1, Tensor? logits_cache_col_ptr, "
      "Tensor? logits_cache_source_ptr, int logits_cache_source_stride, Tensor logits_ptr, "
      "int logits_stride, Tensor expanded_idx_mapping_ptr, Tensor seeds_ptr, Tensor pos_ptr, "
      "Tensor temp_ptr, int vocab_size, int BLOCK_SIZE, bool IS_DRAFTING, bool APPLY_TEMPERATURE, "
      "bool USE_FP64, bool PER_TOKEN_COL) -> ()");
  m.def(
      "runner_topk_log_softmax(Tensor(a!) output_ptr, Tensor logits_ptr, int logits_stride, "
      "Tensor topk_ids_ptr, int topk_ids_stride, int topk, int vocab_size, int BLOCK_SIZE, "
      "int TOPK_BLOCK_SIZE) -> ()");
  m.def(
      "runner_ranks(Tensor(a!) output_ptr, Tensor logits_ptr, int logits_stride, "
      "Tensor token_ids_ptr, int vocab_size, int BLOCK_SIZE) -> ()");
  m.def(
      "runner_num_nans(Tensor logits_ptr, int logits_stride, Tensor(a!) num_nans_ptr, "
      "int vocab_size, int BLOCK_SIZE) -> ()");
  m.def(
      "runner_fill_logprob_token_ids(Tensor(a!) out_token_ids_ptr, int out_token_ids_stride, "
      "Tensor(b!) out_valid_mask_ptr, int out_valid_mask_stride, Tensor sampled_token_ids_ptr, "
      "Tensor topk_indices_ptr, int topk_indices_stride, Tensor expanded_idx_mapping_ptr, "
      "Tensor num_per_req_token_ids_ptr, Tensor per_req_token_ids_ptr, "
      "int per_req_token_ids_stride, int NUM_TOPK, int PADDED_COLS) -> ()");
  m.def(
      "runner_prompt_logprobs_token_ids(Tensor(a!) prompt_logprobs_token_ids_ptr, "
      "Tensor query_start_loc_ptr, Tensor idx_mapping_ptr, Tensor num_computed_tokens_ptr, "
      "Tensor all_token_ids_ptr, int all_token_ids_stride, int BLOCK_SIZE) -> ()");
  m.def(
      "runner_compact_sampling_mask(Tensor logits_ptr, int logits_row_stride, "
      "int logits_col_stride, Tensor cu_num_logits_ptr, Tensor num_sampled_tokens_ptr, "
      "Tensor(a!) token_ids_ptr, int token_ids_row_stride, Tensor(b!) packed_mask_ptr, "
      "int packed_mask_row_stride, Tensor(c!) counts_ptr, int vocab_size, int max_num_kept, "
      "int ROWS_PER_REQUEST, int BLOCK_SIZE) -> ()");
  m.def(
      "runner_trace_replay(Tensor(a!) sampled_ptr, Tensor idx_mapping_ptr, "
      "Tensor trace_token_ids_ptr, int trace_token_ids_stride, Tensor trace_len_ptr, "
      "Tensor total_len_ptr, Tensor prompt_len_ptr) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(vllm_diffusion, CPU, m) {
  m.impl("runner_temperature", TORCH_BOX(&temperature_op));
  m.impl("runner_min_p", TORCH_BOX(&min_p_op));
  m.impl("runner_gumbel_sample", TORCH_BOX(&gumbel_op));
  m.impl("runner_topk_log_softmax", TORCH_BOX(&topk_log_softmax_op));
  m.impl("runner_ranks", TORCH_BOX(&ranks_op));
  m.impl("runner_num_nans", TORCH_BOX(&num_nans_op));
  m.impl("runner_fill_logprob_token_ids", TORCH_BOX(&logprob_ids_op));
  m.impl("runner_prompt_logprobs_token_ids", TORCH_BOX(&prompt_ids_op));
  m.impl("runner_compact_sampling_mask", TORCH_BOX(&sampling_mask_op));
  m.impl("runner_trace_replay", TORCH_BOX(&trace_replay_op));
}

}  // namespace vllm_diffusion
