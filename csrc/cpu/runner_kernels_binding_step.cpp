// torch.ops.vllm_diffusion.runner_*: block tables, a step's inputs and the states after it.
//
// An operator's arguments are those of the Triton kernel it stands for, by name and order, so that
// a launch can be forwarded as it is. What only steers Triton (block sizes, warps) and strides that
// the tensors know themselves are ignored.
#include "cpu/runner_kernels_binding.h"

namespace vllm_diffusion {
namespace {

void write_op(const Tensor& output_ptr, int64_t output_stride, const Tensor& write_indices_ptr,
              const Tensor& write_starts_ptr, const Tensor& write_contents_ptr,
              const Tensor& write_cu_lens_ptr) {
  const Ints indices = ints(write_indices_ptr, "write_indices");
  const Ints starts = ints(write_starts_ptr, "write_starts");
  const Ints cu_lens = ints(write_cu_lens_ptr, "write_cu_lens");
  STD_TORCH_CHECK(starts.size >= indices.size && cu_lens.size >= indices.size,
                  "write_starts and write_cu_lens must be as long as write_indices");
  const ScalarType type = output_ptr.scalar_type();
  const int64_t element_size = type == ScalarType::Long ? 8 : 4;
  STD_TORCH_CHECK(type == ScalarType::Long || type == ScalarType::Int || type == ScalarType::Float,
                  "output must be int32, int64 or float32");
  const int64_t elements = output_ptr.numel();
  const int64_t num_contents = write_contents_ptr.numel();
  check_problem(
      "apply_write",
      apply_write(array<void>(output_ptr, "output", type, 0), elements, output_stride, element_size,
                  indices, starts, array<const void>(write_contents_ptr, "write_contents", type, 0),
                  num_contents, cu_lens));
}

void grouped_write_op(const Tensor& output_ptr, const Tensor& output_stride,
                      const Tensor& write_indices_ptr, const Tensor& write_starts_ptr,
                      const Tensor& write_contents_ptr, const Tensor& write_cu_lens_ptr,
                      const Tensor& write_group_ids_ptr) {
  const Ints indices = ints(write_indices_ptr, "write_indices");
  const Ints starts = ints(write_starts_ptr, "write_starts");
  const Ints cu_lens = ints(write_cu_lens_ptr, "write_cu_lens");
  const Ints group_ids = ints(write_group_ids_ptr, "write_group_ids");
  STD_TORCH_CHECK(
      starts.size >= indices.size && cu_lens.size >= indices.size && group_ids.size >= indices.size,
      "write_starts, write_cu_lens and write_group_ids must be as long as "
      "write_indices");
  const int64_t groups = output_ptr.numel();
  check_problem("apply_write",
                apply_grouped_write(
                    array<const uint64_t>(output_ptr, "output", ScalarType::UInt64, groups),
                    array<const int64_t>(output_stride, "output_stride", ScalarType::Long, groups),
                    groups, indices, starts,
                    array<const int32_t>(write_contents_ptr, "write_contents", ScalarType::Int, 0),
                    write_contents_ptr.numel(), cu_lens, group_ids));
}

void gather_op(const Tensor& batch_idx_to_req_idx, const Tensor& src_block_table_ptrs,
               const Tensor& dst_block_table_ptrs, const Tensor& block_table_strides,
               const Tensor& num_blocks_ptr, int64_t num_blocks_stride, int64_t num_reqs, int64_t) {
  const int64_t groups = src_block_table_ptrs.numel();
  const Ints num_blocks = ints(num_blocks_ptr, "num_blocks");
  STD_TORCH_CHECK(num_blocks.size >= product(groups, num_blocks_stride), "num_blocks is too small");
  check_problem(
      "gather_block_tables",
      gather_block_tables(ints(batch_idx_to_req_idx, "batch_idx_to_req_idx"),
                          array<const uint64_t>(src_block_table_ptrs, "src_block_table_ptrs",
                                                ScalarType::UInt64, groups),
                          array<const uint64_t>(dst_block_table_ptrs, "dst_block_table_ptrs",
                                                ScalarType::UInt64, groups),
                          array<const int64_t>(block_table_strides, "block_table_strides",
                                               ScalarType::Long, groups),
                          groups, num_blocks, num_blocks_stride, num_reqs));
}

void slots_op(int64_t max_num_tokens, const Tensor& idx_mapping, const Tensor& query_start_loc,
              const Tensor& pos, const Tensor& block_table_ptrs, const Tensor& block_table_strides,
              const Tensor& block_sizes, const Tensor& slot_mapping_enabled,
              const Tensor& dcp_sharded, const Tensor& slot_mappings_ptr,
              int64_t slot_mappings_stride, int64_t cp_rank, int64_t cp_size, int64_t cp_interleave,
              int64_t pad_id, int64_t) {
  SlotMappingArgs args;
  args.groups = block_table_ptrs.numel();
  args.max_num_tokens = max_num_tokens;
  args.idx_mapping = ints(idx_mapping, "idx_mapping");
  args.query_start_loc = ints(query_start_loc, "query_start_loc");
  args.pos = ints(pos, "pos");
  args.block_tables =
      array<const uint64_t>(block_table_ptrs, "block_table_ptrs", ScalarType::UInt64, args.groups);
  args.strides = array<const int64_t>(block_table_strides, "block_table_strides", ScalarType::Long,
                                      args.groups);
  args.block_sizes = ints(block_sizes, "block_sizes");
  args.enabled = array<const bool>(slot_mapping_enabled, "slot_mapping_enabled", ScalarType::Bool,
                                   args.groups);
  args.sharded = array<const bool>(dcp_sharded, "dcp_sharded", ScalarType::Bool, args.groups);
  STD_TORCH_CHECK(max_num_tokens <= slot_mappings_stride && cp_size > 0 && cp_interleave > 0,
                  "max_num_tokens exceeds a row of slot_mappings, or a size is not positive");
  STD_TORCH_CHECK(args.block_sizes.size >= args.groups, "block_sizes is too short");
  args.slots = array<int64_t>(slot_mappings_ptr, "slot_mappings", ScalarType::Long,
                              product(args.groups, slot_mappings_stride));
  args.slots_stride = slot_mappings_stride;
  args.cp_rank = cp_rank;
  args.cp_size = cp_size;
  args.cp_interleave = cp_interleave;
  args.pad = pad_id;
  check_problem("compute_slot_mappings", compute_slot_mappings(args));
}

void prefill_op(const Tensor& input_ids_ptr, const Tensor& next_prefill_tokens_ptr, int64_t,
                int64_t num_lookahead, const Tensor& idx_mapping_ptr,
                const Tensor& query_start_loc_ptr, const Tensor& all_token_ids_ptr, int64_t,
                const Tensor& prefill_lens_ptr, const Tensor& num_computed_tokens_ptr, int64_t,
                int64_t) {
  check_problem("prepare_prefill_inputs",
                prepare_prefill_inputs(ints(input_ids_ptr, "input_ids"),
                                       int_rows(next_prefill_tokens_ptr, "next_prefill_tokens"),
                                       num_lookahead, ints(idx_mapping_ptr, "idx_mapping"),
                                       ints(query_start_loc_ptr, "query_start_loc"),
                                       int_rows(all_token_ids_ptr, "all_token_ids"),
                                       ints(prefill_lens_ptr, "prefill_lens"),
                                       ints(num_computed_tokens_ptr, "num_computed_tokens")));
}

void positions_op(const Tensor& pos_ptr, const Tensor& seq_lens_ptr, const Tensor& idx_mapping_ptr,
                  const Tensor& query_start_loc_ptr, const Tensor& num_computed_tokens_ptr,
                  int64_t max_num_reqs, int64_t) {
  check_problem(
      "prepare_pos_seq_lens",
      prepare_pos_seq_lens(ints(pos_ptr, "pos"), ints(seq_lens_ptr, "seq_lens"),
                           ints(idx_mapping_ptr, "idx_mapping"),
                           ints(query_start_loc_ptr, "query_start_loc"),
                           ints(num_computed_tokens_ptr, "num_computed_tokens"), max_num_reqs));
}

void combine_op(const Tensor& input_ids_ptr, const Tensor& idx_mapping_ptr,
                const Tensor& last_sampled_tokens_ptr, const Tensor& query_start_loc_ptr,
                const Tensor& seq_lens_ptr, const Tensor& prefill_len_ptr,
                const Tensor& draft_tokens_ptr, int64_t, const Tensor& cu_num_logits_ptr,
                const Tensor& logits_indices_ptr, int64_t, int64_t num_new_sampled_tokens) {
  check_problem(
      "combine_sampled_and_draft_tokens",
      combine_sampled_and_draft_tokens(
          ints(input_ids_ptr, "input_ids"), ints(idx_mapping_ptr, "idx_mapping"),
          ints(last_sampled_tokens_ptr, "last_sampled_tokens"),
          ints(query_start_loc_ptr, "query_start_loc"), ints(seq_lens_ptr, "seq_lens"),
          ints(prefill_len_ptr, "prefill_len"), int_rows(draft_tokens_ptr, "draft_tokens"),
          ints(cu_num_logits_ptr, "cu_num_logits"), ints(logits_indices_ptr, "logits_indices"),
          num_new_sampled_tokens));
}

void expand_op(const Tensor& idx_mapping_ptr, const Tensor& expanded_idx_mapping_ptr,
               const Tensor& expanded_local_pos_ptr, const Tensor& cu_num_logits_ptr, int64_t) {
  check_problem("expand_idx_mapping",
                expand_idx_mapping(ints(idx_mapping_ptr, "idx_mapping"),
                                   ints(expanded_idx_mapping_ptr, "expanded_idx_mapping"),
                                   ints(expanded_local_pos_ptr, "expanded_local_pos"),
                                   ints(cu_num_logits_ptr, "cu_num_logits")));
}

void counts_op(const Tensor& num_sampled_ptr, const Tensor& num_rejected_ptr,
               const Tensor& seq_lens_ptr, const Tensor& cu_num_logits_ptr,
               const Tensor& idx_mapping_ptr, const Tensor& prefill_len_ptr) {
  check_problem("get_num_sampled_and_rejected",
                get_num_sampled_and_rejected(
                    ints(num_sampled_ptr, "num_sampled"), ints(num_rejected_ptr, "num_rejected"),
                    ints(seq_lens_ptr, "seq_lens"), ints(cu_num_logits_ptr, "cu_num_logits"),
                    ints(idx_mapping_ptr, "idx_mapping"), ints(prefill_len_ptr, "prefill_len")));
}

void post_update_op(const Tensor& idx_mapping_ptr, const Tensor& num_computed_tokens_ptr,
                    const Tensor& last_sampled_tokens_ptr,
                    const std::optional<Tensor>& output_bin_counts_ptr, int64_t,
                    const Tensor& sampled_tokens_ptr, int64_t, const Tensor& num_sampled_ptr,
                    const Tensor& num_rejected_ptr,
                    const std::optional<Tensor>& query_start_loc_ptr,
                    const Tensor& all_token_ids_ptr, int64_t, const Tensor& total_len_ptr,
                    int64_t) {
  PostUpdateArgs args;
  args.idx_mapping = ints(idx_mapping_ptr, "idx_mapping");
  args.num_computed_tokens = ints(num_computed_tokens_ptr, "num_computed_tokens");
  args.last_sampled_tokens = ints(last_sampled_tokens_ptr, "last_sampled_tokens");
  args.output_bin_counts = int_rows(output_bin_counts_ptr, "output_bin_counts");
  args.sampled_tokens = int_rows(sampled_tokens_ptr, "sampled_tokens");
  args.num_sampled = ints(num_sampled_ptr, "num_sampled");
  args.num_rejected = ints(num_rejected_ptr, "num_rejected");
  args.query_start_loc = ints(query_start_loc_ptr, "query_start_loc");
  args.all_token_ids = int_rows(all_token_ids_ptr, "all_token_ids");
  args.total_len = ints(total_len_ptr, "total_len");
  check_problem("post_update", post_update(args));
}

void post_update_computed_op(const Tensor& idx_mapping_ptr, const Tensor& num_computed_tokens_ptr,
                             const Tensor& query_start_loc_ptr) {
  check_problem(
      "post_update_num_computed_tokens",
      post_update_num_computed_tokens(ints(idx_mapping_ptr, "idx_mapping"),
                                      ints(num_computed_tokens_ptr, "num_computed_tokens"),
                                      ints(query_start_loc_ptr, "query_start_loc")));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(vllm_diffusion, m) {
  m.def(
      "runner_apply_write(Tensor(a!) output_ptr, int output_stride, Tensor write_indices_ptr, "
      "Tensor write_starts_ptr, Tensor write_contents_ptr, Tensor write_cu_lens_ptr) -> ()");
  m.def(
      "runner_apply_grouped_write(Tensor output_ptr, Tensor output_stride, "
      "Tensor write_indices_ptr, Tensor write_starts_ptr, Tensor write_contents_ptr, "
      "Tensor write_cu_lens_ptr, Tensor write_group_ids_ptr) -> ()");
  m.def(
      "runner_gather_block_tables(Tensor batch_idx_to_req_idx, Tensor src_block_table_ptrs, "
      "Tensor dst_block_table_ptrs, Tensor block_table_strides, Tensor num_blocks_ptr, "
      "int num_blocks_stride, int num_reqs, int BLOCK_SIZE) -> ()");
  m.def(
      "runner_compute_slot_mappings(int max_num_tokens, Tensor idx_mapping, "
      "Tensor query_start_loc, Tensor pos, Tensor block_table_ptrs, Tensor block_table_strides, "
      "Tensor block_sizes, Tensor slot_mapping_enabled, Tensor dcp_sharded, "
      "Tensor(a!) slot_mappings_ptr, int slot_mappings_stride, int cp_rank, int CP_SIZE, "
      "int CP_INTERLEAVE, int PAD_ID, int TRITON_BLOCK_SIZE) -> ()");
  m.def(
      "runner_prepare_prefill_inputs(Tensor(a!) input_ids_ptr, "
      "Tensor(b!) next_prefill_tokens_ptr, int next_prefill_tokens_stride, int num_lookahead, "
      "Tensor idx_mapping_ptr, Tensor query_start_loc_ptr, Tensor all_token_ids_ptr, "
      "int all_token_ids_stride, Tensor prefill_lens_ptr, Tensor num_computed_tokens_ptr, "
      "int BLOCK_SIZE, int LOOKAHEAD_BLOCK) -> ()");
  m.def(
      "runner_prepare_pos_seq_lens(Tensor(a!) pos_ptr, Tensor(b!) seq_lens_ptr, "
      "Tensor idx_mapping_ptr, Tensor query_start_loc_ptr, Tensor num_computed_tokens_ptr, "
      "int max_num_reqs, int BLOCK_SIZE) -> ()");
  m.def(
      "runner_combine_sampled_and_draft_tokens(Tensor(a!) input_ids_ptr, Tensor idx_mapping_ptr, "
      "Tensor last_sampled_tokens_ptr, Tensor query_start_loc_ptr, Tensor seq_lens_ptr, "
      "Tensor prefill_len_ptr, Tensor draft_tokens_ptr, int draft_tokens_stride, "
      "Tensor cu_num_logits_ptr, Tensor(b!) logits_indices_ptr, int BLOCK_SIZE, "
      "int NUM_NEW_SAMPLED_TOKENS=1) -> ()");
  m.def(
      "runner_expand_idx_mapping(Tensor idx_mapping_ptr, Tensor(a!) expanded_idx_mapping_ptr, "
      "Tensor(b!) expanded_local_pos_ptr, Tensor cu_num_logits_ptr, int BLOCK_SIZE) -> ()");
  m.def(
      "runner_get_num_sampled_and_rejected(Tensor(a!) num_sampled_ptr, "
      "Tensor(b!) num_rejected_ptr, Tensor seq_lens_ptr, Tensor cu_num_logits_ptr, "
      "Tensor idx_mapping_ptr, Tensor prefill_len_ptr) -> ()");
  m.def(
      "runner_post_update(Tensor idx_mapping_ptr, Tensor(a!) num_computed_tokens_ptr, "
      "Tensor(b!) last_sampled_tokens_ptr, Tensor(c!)? output_bin_counts_ptr, "
      "int output_bin_counts_stride, Tensor sampled_tokens_ptr, int sampled_tokens_stride, "
      "Tensor num_sampled_ptr, Tensor num_rejected_ptr, Tensor? query_start_loc_ptr, "
      "Tensor(d!) all_token_ids_ptr, int all_token_ids_stride, Tensor(e!) total_len_ptr, "
      "int num_warps=1) -> ()");
  m.def(
      "runner_post_update_num_computed_tokens(Tensor idx_mapping_ptr, "
      "Tensor(a!) num_computed_tokens_ptr, Tensor query_start_loc_ptr) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(vllm_diffusion, CPU, m) {
  m.impl("runner_apply_write", TORCH_BOX(&write_op));
  m.impl("runner_apply_grouped_write", TORCH_BOX(&grouped_write_op));
  m.impl("runner_gather_block_tables", TORCH_BOX(&gather_op));
  m.impl("runner_compute_slot_mappings", TORCH_BOX(&slots_op));
  m.impl("runner_prepare_prefill_inputs", TORCH_BOX(&prefill_op));
  m.impl("runner_prepare_pos_seq_lens", TORCH_BOX(&positions_op));
  m.impl("runner_combine_sampled_and_draft_tokens", TORCH_BOX(&combine_op));
  m.impl("runner_expand_idx_mapping", TORCH_BOX(&expand_op));
  m.impl("runner_get_num_sampled_and_rejected", TORCH_BOX(&counts_op));
  m.impl("runner_post_update", TORCH_BOX(&post_update_op));
  m.impl("runner_post_update_num_computed_tokens", TORCH_BOX(&post_update_computed_op));
}

}  // namespace vllm_diffusion
