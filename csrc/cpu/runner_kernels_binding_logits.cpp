// torch.ops.vllm_diffusion.runner_*: penalties, biases and bans, the thinking budget, and the
// inputs of some models. Arguments as in runner_kernels_binding_step.cpp.
#include "cpu/runner_kernels_binding.h"

namespace vllm_diffusion {
namespace {

RowContext row_context(const Tensor& requests, const Tensor& token_ids, const Tensor& local_pos) {
  return {ints(requests, "expanded_idx_mapping"), ints(token_ids, "token_ids"),
          ints(local_pos, "expanded_local_pos")};
}

// A matrix of int32, looked at as such.
IntRows int32_rows(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Int, name, " must be int32");
  return int_rows(tensor, name);
}

void penalties_op(const Tensor& logits_ptr, int64_t, const Tensor& expanded_idx_mapping_ptr,
                  const Tensor& token_ids_ptr, const Tensor& expanded_local_pos_ptr,
                  const Tensor& repetition_penalty_ptr, const Tensor& frequency_penalty_ptr,
                  const Tensor& presence_penalty_ptr, const Tensor& prompt_bin_mask_ptr, int64_t,
                  const Tensor& output_bin_counts_ptr, int64_t, int64_t vocab_size, int64_t) {
  PenaltiesArgs args;
  args.logits = float_logits(logits_ptr, vocab_size);
  args.context = row_context(expanded_idx_mapping_ptr, token_ids_ptr, expanded_local_pos_ptr);
  args.prompt_bin_mask = int32_rows(prompt_bin_mask_ptr, "prompt_bin_mask");
  args.output_bin_counts = int32_rows(output_bin_counts_ptr, "output_bin_counts");
  const int64_t slots = args.output_bin_counts.rows;
  args.repetition = floats(repetition_penalty_ptr, "repetition_penalty", slots);
  args.frequency = floats(frequency_penalty_ptr, "frequency_penalty", slots);
  args.presence = floats(presence_penalty_ptr, "presence_penalty", slots);
  check_problem("apply_penalties", apply_penalties(args, torch_threads()));
}

void bincount_op(const Tensor& expanded_idx_mapping_ptr, const Tensor& all_token_ids_ptr, int64_t,
                 const Tensor& prompt_len_ptr, const Tensor& prefill_len_ptr,
                 const Tensor& prompt_bin_mask_ptr, int64_t, const Tensor& output_bin_counts_ptr,
                 int64_t, int64_t) {
  check_problem("bincount",
                bincount(ints(expanded_idx_mapping_ptr, "expanded_idx_mapping"),
                         int_rows(all_token_ids_ptr, "all_token_ids"),
                         ints(prompt_len_ptr, "prompt_len"), ints(prefill_len_ptr, "prefill_len"),
                         int32_rows(prompt_bin_mask_ptr, "prompt_bin_mask"),
                         int_rows(output_bin_counts_ptr, "output_bin_counts")));
}

void bias_op(const Tensor& logits_ptr, int64_t, int64_t vocab_size,
             const Tensor& expanded_idx_mapping_ptr, const Tensor& num_allowed_token_ids_ptr,
             const Tensor& allowed_token_ids_ptr, int64_t, const Tensor& num_logit_bias_ptr,
             const Tensor& bias_token_ids_ptr, int64_t, const Tensor& bias_ptr, int64_t bias_stride,
             const Tensor& pos_ptr, const Tensor& min_lens_ptr,
             const Tensor& num_stop_token_ids_ptr, const Tensor& restore_when_all_masked_ptr,
             const Tensor& stop_token_ids_ptr, int64_t, int64_t, int64_t,
             bool check_all_masked_rows) {
  BiasArgs args;
  args.logits = float_logits(logits_ptr, vocab_size);
  args.requests = ints(expanded_idx_mapping_ptr, "expanded_idx_mapping");
  args.num_allowed = ints(num_allowed_token_ids_ptr, "num_allowed_token_ids");
  args.allowed = int_rows(allowed_token_ids_ptr, "allowed_token_ids");
  args.num_bias = ints(num_logit_bias_ptr, "num_logit_bias");
  args.bias_ids = int_rows(bias_token_ids_ptr, "bias_token_ids");
  args.bias = floats(bias_ptr, "bias", product(args.bias_ids.rows, bias_stride));
  STD_TORCH_CHECK(bias_stride >= args.bias_ids.cols, "bias is narrower than bias_token_ids");
  args.bias_stride = bias_stride;
  args.pos = ints(pos_ptr, "pos");
  args.min_lens = ints(min_lens_ptr, "min_lens");
  args.num_stop = ints(num_stop_token_ids_ptr, "num_stop_token_ids");
  args.restore_when_all_masked = ints(restore_when_all_masked_ptr, "restore_when_all_masked");
  args.stop = int_rows(stop_token_ids_ptr, "stop_token_ids");
  args.check_all_masked = check_all_masked_rows;
  check_problem("apply_bias", apply_bias(args, torch_threads()));
}

void bad_words_op(const Tensor& logits_ptr, int64_t, const Tensor& expanded_idx_mapping_ptr,
                  const Tensor& bad_word_token_ids_ptr, int64_t, const Tensor& bad_word_offsets_ptr,
                  int64_t, const Tensor& num_bad_words_ptr, const Tensor& all_token_ids_ptr,
                  int64_t, const Tensor& prompt_len_ptr, const Tensor& total_len_ptr,
                  const Tensor& input_ids_ptr, const Tensor& expanded_local_pos_ptr) {
  BadWordsArgs args;
  args.logits = float_logits(logits_ptr, logits_ptr.size(1));
  args.context = row_context(expanded_idx_mapping_ptr, input_ids_ptr, expanded_local_pos_ptr);
  args.words = int_rows(bad_word_token_ids_ptr, "bad_word_token_ids");
  args.offsets = int_rows(bad_word_offsets_ptr, "bad_word_offsets");
  args.num_words = ints(num_bad_words_ptr, "num_bad_words");
  args.all_token_ids = int_rows(all_token_ids_ptr, "all_token_ids");
  args.prompt_len = ints(prompt_len_ptr, "prompt_len");
  args.total_len = ints(total_len_ptr, "total_len");
  check_problem("apply_bad_words", apply_bad_words(args));
}

void grammar_op(const Tensor& logits_ptr, int64_t, const Tensor& logits_indices_ptr,
                const Tensor& cu_num_logits_ptr, const Tensor& bitmask_ptr, int64_t,
                int64_t vocab_size, int64_t mask_stride, int64_t) {
  STD_TORCH_CHECK(mask_stride > 0, "MASK_STRIDE must be positive");
  check_problem("apply_grammar_bitmask",
                apply_grammar_bitmask(logits(logits_ptr, vocab_size),
                                      ints(logits_indices_ptr, "logits_indices"),
                                      ints(cu_num_logits_ptr, "cu_num_logits"),
                                      int32_rows(bitmask_ptr, "bitmask"), mask_stride));
}

ThinkingArgs thinking_args(const Tensor& budget, const Tensor& all_token_ids,
                           const Tensor& total_len, const Tensor& last_start,
                           const Tensor& last_end, const Tensor& start, const Tensor& natural_end) {
  return {ints(budget, "thinking_token_budget"),
          int_rows(all_token_ids, "all_token_ids"),
          ints(total_len, "total_len"),
          ints(last_start, "cached_last_start"),
          ints(last_end, "cached_last_end"),
          ints(start, "reasoning_start_token_ids"),
          ints(natural_end, "natural_reasoning_end_token_ids")};
}

void marker_cache_op(const Tensor& req_ids_ptr, const Tensor& thinking_token_budget_ptr,
                     const Tensor& all_token_ids_ptr, int64_t, const Tensor& total_len_ptr,
                     const Tensor& cached_last_start_ptr, const Tensor& cached_last_end_ptr,
                     const Tensor& cached_scan_pos_ptr, const Tensor& reasoning_start_token_ids_ptr,
                     const Tensor& natural_reasoning_end_token_ids_ptr, int64_t, int64_t,
                     int64_t max_len, int64_t) {
  check_problem(
      "update_marker_cache",
      update_marker_cache(
          thinking_args(thinking_token_budget_ptr, all_token_ids_ptr, total_len_ptr,
                        cached_last_start_ptr, cached_last_end_ptr, reasoning_start_token_ids_ptr,
                        natural_reasoning_end_token_ids_ptr),
          ints(req_ids_ptr, "req_ids"), ints(cached_scan_pos_ptr, "cached_scan_pos"), max_len));
}

void thinking_op(const Tensor& logits_ptr, int64_t, const Tensor& expanded_idx_mapping_ptr,
                 const Tensor& thinking_token_budget_ptr, const Tensor& all_token_ids_ptr, int64_t,
                 const Tensor& total_len_ptr, const Tensor& input_ids_ptr,
                 const Tensor& expanded_local_pos_ptr, const Tensor& cached_last_start_ptr,
                 const Tensor& cached_last_end_ptr, const Tensor& reasoning_start_token_ids_ptr,
                 const Tensor& natural_reasoning_end_token_ids_ptr,
                 const Tensor& reasoning_end_token_ids_ptr, int64_t, int64_t, int64_t) {
  check_problem(
      "apply_thinking_budget",
      apply_thinking_budget(
          thinking_args(thinking_token_budget_ptr, all_token_ids_ptr, total_len_ptr,
                        cached_last_start_ptr, cached_last_end_ptr, reasoning_start_token_ids_ptr,
                        natural_reasoning_end_token_ids_ptr),
          float_logits(logits_ptr, logits_ptr.size(1)),
          row_context(expanded_idx_mapping_ptr, input_ids_ptr, expanded_local_pos_ptr),
          ints(reasoning_end_token_ids_ptr, "reasoning_end_token_ids")));
}

void rope_op(const Tensor& positions_ptr, int64_t positions_stride,
             const Tensor& prefill_positions_ptr, int64_t prefill_positions_stride0,
             int64_t prefill_positions_stride1, const Tensor& prefill_delta_ptr,
             const Tensor& idx_mapping_ptr, const Tensor& query_start_loc_ptr,
             const Tensor& prefill_lens_ptr, const Tensor& num_computed_tokens_ptr, int64_t,
             int64_t num_dims) {
  RopeArgs args;
  args.positions = int_rows(positions_ptr, "positions");
  STD_TORCH_CHECK(args.positions.stride == positions_stride, "positions_stride is not its stride");
  args.prefill_positions = ints(prefill_positions_ptr, "prefill_positions");
  args.slot_stride = prefill_positions_stride0;
  args.dim_stride = prefill_positions_stride1;
  args.prefill_delta = ints(prefill_delta_ptr, "prefill_delta");
  args.idx_mapping = ints(idx_mapping_ptr, "idx_mapping");
  args.query_start_loc = ints(query_start_loc_ptr, "query_start_loc");
  args.prefill_lens = ints(prefill_lens_ptr, "prefill_lens");
  args.num_computed_tokens = ints(num_computed_tokens_ptr, "num_computed_tokens");
  args.dims = num_dims;
  check_problem("prepare_rope_positions", prepare_rope_positions(args));
}

void prompt_embeds_op(const Tensor& inputs_embeds_ptr, int64_t inputs_embeds_stride,
                      const Tensor& embeds_ptrs_ptr, const Tensor& mask_ptrs_ptr,
                      const Tensor& embeds_lens_ptr, const Tensor& idx_mapping_ptr,
                      const Tensor& query_start_loc_ptr, const Tensor& num_computed_tokens_ptr,
                      int64_t hidden_size, int64_t, int64_t) {
  STD_TORCH_CHECK(inputs_embeds_ptr.dim() == 2 && inputs_embeds_ptr.size(1) >= hidden_size &&
                      inputs_embeds_ptr.stride(0) == inputs_embeds_stride,
                  "inputs_embeds must be [tokens, hidden_size]");
  const int64_t element_size = inputs_embeds_ptr.scalar_type() == ScalarType::Float ? 4 : 2;
  STD_TORCH_CHECK(element_size == 4 || inputs_embeds_ptr.scalar_type() == ScalarType::Half ||
                      inputs_embeds_ptr.scalar_type() == ScalarType::BFloat16,
                  "inputs_embeds must be float32, float16 or bfloat16");
  PromptEmbedsArgs args;
  args.target = static_cast<char*>(inputs_embeds_ptr.data_ptr());
  args.rows = inputs_embeds_ptr.size(0);
  args.row_stride = product(inputs_embeds_stride, element_size);
  args.row_bytes = product(hidden_size, element_size);
  args.embeds_lens = ints(embeds_lens_ptr, "embeds_lens");
  const int64_t slots = args.embeds_lens.size;
  args.embeds = array<const uint64_t>(embeds_ptrs_ptr, "embeds_ptrs", ScalarType::UInt64, slots);
  args.is_token = array<const uint64_t>(mask_ptrs_ptr, "mask_ptrs", ScalarType::UInt64, slots);
  args.idx_mapping = ints(idx_mapping_ptr, "idx_mapping");
  args.query_start_loc = ints(query_start_loc_ptr, "query_start_loc");
  args.num_computed_tokens = ints(num_computed_tokens_ptr, "num_computed_tokens");
  check_problem("apply_prompt_embeds", apply_prompt_embeds(args));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(vllm_diffusion, m) {
  m.def(
      "runner_penalties(Tensor(a!) logits_ptr, int logits_stride, "
      "Tensor expanded_idx_mapping_ptr, Tensor token_ids_ptr, Tensor expanded_local_pos_ptr, "
      "Tensor repetition_penalty_ptr, Tensor frequency_penalty_ptr, Tensor presence_penalty_ptr, "
      "Tensor prompt_bin_mask_ptr, int prompt_bin_mask_stride, Tensor output_bin_counts_ptr, "
      "int output_bin_counts_stride, int vocab_size, int BLOCK_SIZE) -> ()");
  m.def(
      "runner_bincount(Tensor expanded_idx_mapping_ptr, Tensor all_token_ids_ptr, "
      "int all_token_ids_stride, Tensor prompt_len_ptr, Tensor prefill_len_ptr, "
      "Tensor(a!) prompt_bin_mask_ptr, int prompt_bin_mask_stride, "
      "Tensor(b!) output_bin_counts_ptr, int output_bin_counts_stride, int BLOCK_SIZE) -> ()");
  m.def(
      "runner_bias(Tensor(a!) logits_ptr, int logits_stride, int vocab_size, "
      "Tensor expanded_idx_mapping_ptr, Tensor num_allowed_token_ids_ptr, "
      "Tensor allowed_token_ids_ptr, int allowed_token_ids_stride, Tensor num_logit_bias_ptr, "
      "Tensor bias_token_ids_ptr, int bias_token_ids_stride, Tensor bias_ptr, int bias_stride, "
      "Tensor pos_ptr, Tensor min_lens_ptr, Tensor num_stop_token_ids_ptr, "
      "Tensor restore_when_all_masked_ptr, Tensor stop_token_ids_ptr, int stop_token_ids_stride, "
      "int BLOCK_SIZE, int LOGITS_BLOCK_SIZE, bool CHECK_ALL_MASKED_ROWS) -> ()");
  m.def(
      "runner_bad_words(Tensor(a!) logits_ptr, int logits_stride, "
      "Tensor expanded_idx_mapping_ptr, Tensor bad_word_token_ids_ptr, "
      "int bad_word_token_ids_stride, Tensor bad_word_offsets_ptr, int bad_word_offsets_stride, "
      "Tensor num_bad_words_ptr, Tensor all_token_ids_ptr, int all_token_ids_stride, "
      "Tensor prompt_len_ptr, Tensor total_len_ptr, Tensor input_ids_ptr, "
      "Tensor expanded_local_pos_ptr) -> ()");
  m.def(
      "runner_apply_grammar_bitmask(Tensor(a!) logits_ptr, int logits_stride, "
      "Tensor logits_indices_ptr, Tensor cu_num_logits_ptr, Tensor bitmask_ptr, "
      "int bitmask_stride, int vocab_size, int MASK_STRIDE, int BLOCK_SIZE) -> ()");
  m.def(
      "runner_update_committed_marker_cache(Tensor req_ids_ptr, Tensor thinking_token_budget_ptr, "
      "Tensor all_token_ids_ptr, int all_token_ids_stride, Tensor total_len_ptr, "
      "Tensor(a!) cached_last_start_ptr, Tensor(b!) cached_last_end_ptr, "
      "Tensor(c!) cached_scan_pos_ptr, Tensor reasoning_start_token_ids_ptr, "
      "Tensor natural_reasoning_end_token_ids_ptr, int START_LEN, int NATURAL_END_LEN, "
      "int MAX_LEN, int BLOCK) -> ()");
  m.def(
      "runner_thinking_budget(Tensor(a!) logits_ptr, int logits_stride, "
      "Tensor expanded_idx_mapping_ptr, Tensor thinking_token_budget_ptr, "
      "Tensor all_token_ids_ptr, int all_token_ids_stride, Tensor total_len_ptr, "
      "Tensor input_ids_ptr, Tensor expanded_local_pos_ptr, Tensor cached_last_start_ptr, "
      "Tensor cached_last_end_ptr, Tensor reasoning_start_token_ids_ptr, "
      "Tensor natural_reasoning_end_token_ids_ptr, Tensor reasoning_end_token_ids_ptr, "
      "int START_LEN, int NATURAL_END_LEN, int END_LEN) -> ()");
  m.def(
      "runner_prepare_rope_positions(Tensor(a!) positions_ptr, int positions_stride, "
      "Tensor prefill_positions_ptr, int prefill_positions_stride0, "
      "int prefill_positions_stride1, Tensor prefill_delta_ptr, Tensor idx_mapping_ptr, "
      "Tensor query_start_loc_ptr, Tensor prefill_lens_ptr, Tensor num_computed_tokens_ptr, "
      "int BLOCK_SIZE, int NUM_DIMS) -> ()");
  m.def(
      "runner_apply_prompt_embeds(Tensor(a!) inputs_embeds_ptr, int inputs_embeds_stride, "
      "Tensor embeds_ptrs_ptr, Tensor mask_ptrs_ptr, Tensor embeds_lens_ptr, "
      "Tensor idx_mapping_ptr, Tensor query_start_loc_ptr, Tensor num_computed_tokens_ptr, "
      "int hidden_size, int TOKEN_BLOCK, int BLOCK_SIZE) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(vllm_diffusion, CPU, m) {
  m.impl("runner_penalties", TORCH_BOX(&penalties_op));
  m.impl("runner_bincount", TORCH_BOX(&bincount_op));
  m.impl("runner_bias", TORCH_BOX(&bias_op));
  m.impl("runner_bad_words", TORCH_BOX(&bad_words_op));
  m.impl("runner_apply_grammar_bitmask", TORCH_BOX(&grammar_op));
  m.impl("runner_update_committed_marker_cache", TORCH_BOX(&marker_cache_op));
  m.impl("runner_thinking_budget", TORCH_BOX(&thinking_op));
  m.impl("runner_prepare_rope_positions", TORCH_BOX(&rope_op));
  m.impl("runner_apply_prompt_embeds", TORCH_BOX(&prompt_embeds_op));
}

}  // namespace vllm_diffusion
