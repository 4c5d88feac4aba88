// The bookkeeping of vLLM's Model Runner V2 on a CPU: what its Triton kernels under
// vllm/v1/worker/gpu/ do between two forward passes. Raw pointers only; no torch.
//
// Every function returns null, or a sentence that says what is wrong with the arguments. They check
// what could write out of bounds: a Triton kernel would corrupt the device's memory, this one the
// engine's.
#pragma once

#include <cstdint>

namespace vllm_diffusion {

// A vector of int32 or int64. The runner's types are its own business and have changed before.
struct Ints {
  void* data = nullptr;
  int64_t size = 0;
  bool wide = false;  // int64

  explicit operator bool() const { return data != nullptr; }
  bool has(int64_t i) const { return i >= 0 && i < size; }
  int64_t operator[](int64_t i) const {
    return wide ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
  }
  void set(int64_t i, int64_t value) const {
    if (wide) {
      static_cast<int64_t*>(data)[i] = value;
    } else {
      static_cast<int32_t*>(data)[i] = static_cast<int32_t>(value);
    }
  }
};

// Rows of `cols` integers, `stride` elements apart.
struct IntRows {
  Ints flat;  // size: elements from the first to the last
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;

  explicit operator bool() const { return flat.data != nullptr; }
  bool has(int64_t row) const { return row >= 0 && row < rows; }
  int64_t at(int64_t row, int64_t col) const { return flat[row * stride + col]; }
  void set(int64_t row, int64_t col, int64_t value) const { flat.set(row * stride + col, value); }
};

// target[to + i] = source[from + i] for i in [0, count). The ranges do not overlap.
void copy_ints(const Ints& source, int64_t from, const Ints& target, int64_t to, int64_t count);

// --- Staged writes (buffer_utils.py) -------------------------------------------------------------

// Writes variable-length pieces into rows of one matrix of 4- or 8-byte elements. `elements` is how
// many the matrix holds.
const char* apply_write(void* output, int64_t elements, int64_t stride, int64_t element_size,
                        const Ints& indices, const Ints& starts, const void* contents,
                        int64_t num_contents, const Ints& cu_lens);

// The same into several int32 matrices of which only addresses and row strides are known.
const char* apply_grouped_write(const uint64_t* outputs, const int64_t* strides, int64_t groups,
                                const Ints& indices, const Ints& starts, const int32_t* contents,
                                int64_t num_contents, const Ints& cu_lens, const Ints& group_ids);

// --- Block tables (block_table.py) ---------------------------------------------------------------

// Gathers the block tables of the batch's requests, per KV-cache group. Rows beyond the batch are
// left alone: only CUDA graphs read them.
const char* gather_block_tables(const Ints& requests, const uint64_t* sources,
                                const uint64_t* targets, const int64_t* strides, int64_t groups,
                                const Ints& num_blocks, int64_t num_blocks_stride,
                                int64_t num_reqs);

struct SlotMappingArgs {
  int64_t max_num_tokens;
  Ints idx_mapping;              // [requests]
  Ints query_start_loc;          // [>= requests + 1]
  Ints pos;                      // [>= tokens]
  const uint64_t* block_tables;  // [groups], int32 matrices
  const int64_t* strides;        // [groups]
  Ints block_sizes;              // [groups]
  const bool* enabled;           // [groups]
  const bool* sharded;           // [groups]
  int64_t groups;
  int64_t* slots;  // [groups, >= max_num_tokens]
  int64_t slots_stride;
  int64_t cp_rank;
  int64_t cp_size;
  int64_t cp_interleave;
  int64_t pad;
};
const char* compute_slot_mappings(const SlotMappingArgs& args);

// --- Inputs of a step (input_batch.py) -----------------------------------------------------------

const char* prepare_prefill_inputs(const Ints& input_ids, const IntRows& next_prefill_tokens,
                                   int64_t num_lookahead, const Ints& idx_mapping,
                                   const Ints& query_start_loc, const IntRows& all_token_ids,
                                   const Ints& prefill_lens, const Ints& num_computed_tokens);

const char* prepare_pos_seq_lens(const Ints& pos, const Ints& seq_lens, const Ints& idx_mapping,
                                 const Ints& query_start_loc, const Ints& num_computed_tokens,
                                 int64_t max_num_reqs);

const char* combine_sampled_and_draft_tokens(const Ints& input_ids, const Ints& idx_mapping,
                                             const Ints& last_sampled_tokens,
                                             const Ints& query_start_loc, const Ints& seq_lens,
                                             const Ints& prefill_len, const IntRows& draft_tokens,
                                             const Ints& cu_num_logits, const Ints& logits_indices,
                                             int64_t num_new_sampled_tokens);

const char* expand_idx_mapping(const Ints& idx_mapping, const Ints& expanded_idx_mapping,
                               const Ints& expanded_local_pos, const Ints& cu_num_logits);

// --- After a step (input_batch.py) ---------------------------------------------------------------

const char* get_num_sampled_and_rejected(const Ints& num_sampled, const Ints& num_rejected,
                                         const Ints& seq_lens, const Ints& cu_num_logits,
                                         const Ints& idx_mapping, const Ints& prefill_len);

struct PostUpdateArgs {
  Ints idx_mapping;           // [requests], negative: skip
  Ints num_computed_tokens;   // [slots]
  Ints last_sampled_tokens;   // [slots]
  IntRows output_bin_counts;  // [slots, vocabulary], or null
  IntRows sampled_tokens;     // [requests, most tokens a step]
  Ints num_sampled;           // [requests]
  Ints num_rejected;          // [requests]
  Ints query_start_loc;       // [>= requests + 1], or null: no token was computed
  IntRows all_token_ids;      // [slots, model length]
  Ints total_len;             // [slots]
};
const char* post_update(const PostUpdateArgs& args);

const char* post_update_num_computed_tokens(const Ints& idx_mapping,
                                            const Ints& num_computed_tokens,
                                            const Ints& query_start_loc);

// --- Inputs of some models (mm/rope.py, model_states/prompt_embeds.py) ---------------------------

struct RopeArgs {
  IntRows positions;         // [dims, >= tokens]
  Ints prefill_positions;    // [slots * dims, model length], flattened
  int64_t slot_stride;       // elements between two slots of it
  int64_t dim_stride;        // and between two dimensions
  Ints prefill_delta;        // [slots]
  Ints idx_mapping;          // [requests]
  Ints query_start_loc;      // [>= requests + 1]
  Ints prefill_lens;         // [slots]
  Ints num_computed_tokens;  // [slots]
  int64_t dims;
};
const char* prepare_rope_positions(const RopeArgs& args);

struct PromptEmbedsArgs {
  char* target;  // [rows, row_bytes apart]
  int64_t rows;
  int64_t row_stride;  // bytes
  int64_t row_bytes;
  const uint64_t* embeds;    // [slots], addresses
  const uint64_t* is_token;  // [slots], addresses of a byte a row, or 0
  Ints embeds_lens;          // [slots]
  Ints idx_mapping;          // [requests]
  Ints query_start_loc;      // [>= requests + 1]
  Ints num_computed_tokens;  // [slots]
};
const char* apply_prompt_embeds(const PromptEmbedsArgs& args);

}  // namespace vllm_diffusion
