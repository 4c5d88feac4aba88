// A step's inputs, and the request states after it.
#include <algorithm>

#include "runner_kernels.h"

namespace vllm_diffusion {
namespace {

constexpr const char* kSlot = "a request's slot is out of range";
constexpr const char* kQuery = "query_start_loc does not fit the batch's tokens";
constexpr const char* kLogits = "cu_num_logits does not fit the batch's logits";

// The tokens of request i: [begin, end).
struct Span {
  int64_t begin;
  int64_t end;
  int64_t length() const { return end - begin; }
  bool within(int64_t size) const { return begin >= 0 && begin <= end && end <= size; }
};

Span span(const Ints& offsets, int64_t i) {
  return {offsets[i], offsets[i + 1]};
}

}  // namespace

const char* prepare_prefill_inputs(const Ints& input_ids, const IntRows& next_prefill_tokens,
                                   int64_t num_lookahead, const Ints& idx_mapping,
                                   const Ints& query_start_loc, const IntRows& all_token_ids,
                                   const Ints& prefill_lens, const Ints& num_computed_tokens) {
  if (query_start_loc.size < idx_mapping.size + 1) return kQuery;
  if (num_lookahead > next_prefill_tokens.rows) return "num_lookahead exceeds its buffer";
  for (int64_t i = 0; i < idx_mapping.size; ++i) {
    const int64_t slot = idx_mapping[i];
    if (!all_token_ids.has(slot) || !prefill_lens.has(slot) || !num_computed_tokens.has(slot) ||
        slot >= next_prefill_tokens.cols) {
      return kSlot;
    }
    const int64_t prefill_len = prefill_lens[slot];
    const int64_t computed = num_computed_tokens[slot];
    if (computed >= prefill_len) continue;  // this request decodes
    const Span query = span(query_start_loc, i);
    if (computed < 0 || !query.within(input_ids.size)) return kQuery;
    const int64_t row = slot * all_token_ids.stride;
    // Draft tokens may follow the prompt; they are not in the row and are written later.
    copy_ints(all_token_ids.flat, row + computed, input_ids, query.begin,
              std::min(query.length(), all_token_ids.cols - computed));
    for (int64_t k = 0; k < num_lookahead; ++k) {
      const int64_t position = computed + query.length() + k;
      const bool known = position < prefill_len && position < all_token_ids.cols;
      next_prefill_tokens.set(k, slot, known ? all_token_ids.at(slot, position) : 0);
    }
  }
  return nullptr;
}

const char* prepare_pos_seq_lens(const Ints& pos, const Ints& seq_lens, const Ints& idx_mapping,
                                 const Ints& query_start_loc, const Ints& num_computed_tokens,
                                 int64_t max_num_reqs) {
  const int64_t requests = idx_mapping.size;
  if (query_start_loc.size < requests + 1) return kQuery;
  if (max_num_reqs > seq_lens.size || requests > max_num_reqs) return "seq_lens is too short";
  for (int64_t i = 0; i < requests; ++i) {
    const int64_t slot = idx_mapping[i];
    if (!num_computed_tokens.has(slot)) return kSlot;
    const Span query = span(query_start_loc, i);
    if (!query.within(pos.size)) return kQuery;
    const int64_t computed = num_computed_tokens[slot];
    seq_lens.set(i, computed + query.length());
    for (int64_t t = 0; t < query.length(); ++t) pos.set(query.begin + t, computed + t);
  }
  for (int64_t i = requests; i < max_num_reqs; ++i) seq_lens.set(i, 0);
  return nullptr;
}

const char* combine_sampled_and_draft_tokens(const Ints& input_ids, const Ints& idx_mapping,
                                             const Ints& last_sampled_tokens,
                                             const Ints& query_start_loc, const Ints& seq_lens,
                                             const Ints& prefill_len, const IntRows& draft_tokens,
                                             const Ints& cu_num_logits, const Ints& logits_indices,
                                             int64_t num_new_sampled_tokens) {
  const int64_t requests = idx_mapping.size;
  if (query_start_loc.size < requests + 1 || seq_lens.size < requests) return kQuery;
  if (cu_num_logits.size < requests + 1) return kLogits;
  for (int64_t i = 0; i < requests; ++i) {
    const int64_t slot = idx_mapping[i];
    if (!last_sampled_tokens.has(slot) || !prefill_len.has(slot)) return kSlot;
    const Span logits = span(cu_num_logits, i);
    if (!logits.within(logits_indices.size)) return kLogits;
    const int64_t query_end = query_start_loc[i + 1];
    const int64_t first = query_end - logits.length();
    if (first < 0 || query_end > input_ids.size) return kQuery;
    for (int64_t k = 0; k < logits.length(); ++k) logits_indices.set(logits.begin + k, first + k);

    if (seq_lens[i] <= prefill_len[slot]) continue;  // prompt tokens only
    // A logit may sit on the prompt's tail; those ids stay.
    if (num_new_sampled_tokens > 0 && seq_lens[i] - logits.length() >= prefill_len[slot]) {
      if (first >= input_ids.size) return kQuery;
      input_ids.set(first, last_sampled_tokens[slot]);
    }
    const int64_t drafts = logits.length() - num_new_sampled_tokens;
    if (drafts > 0) {
      if (!draft_tokens.has(slot) || drafts > draft_tokens.cols) {
        return "more draft tokens than draft_tokens holds";
      }
      copy_ints(draft_tokens.flat, slot * draft_tokens.stride, input_ids, query_end - drafts,
                drafts);
    }
  }
  return nullptr;
}

const char* expand_idx_mapping(const Ints& idx_mapping, const Ints& expanded_idx_mapping,
                               const Ints& expanded_local_pos, const Ints& cu_num_logits) {
  if (cu_num_logits.size < idx_mapping.size + 1) return kLogits;
  for (int64_t i = 0; i < idx_mapping.size; ++i) {
    const Span logits = span(cu_num_logits, i);
    if (!logits.within(std::min(expanded_idx_mapping.size, expanded_local_pos.size))) {
      return kLogits;
    }
    for (int64_t k = 0; k < logits.length(); ++k) {
      expanded_idx_mapping.set(logits.begin + k, idx_mapping[i]);
      expanded_local_pos.set(logits.begin + k, k);
    }
  }
  return nullptr;
}

const char* get_num_sampled_and_rejected(const Ints& num_sampled, const Ints& num_rejected,
                                         const Ints& seq_lens, const Ints& cu_num_logits,
                                         const Ints& idx_mapping, const Ints& prefill_len) {
  const int64_t requests = idx_mapping.size;
  if (num_sampled.size < requests || num_rejected.size < requests || seq_lens.size < requests) {
    return "num_sampled, num_rejected or seq_lens is too short";
  }
  if (cu_num_logits.size < requests + 1) return kLogits;
  for (int64_t i = 0; i < requests; ++i) {
    const int64_t slot = idx_mapping[i];
    if (!prefill_len.has(slot)) return kSlot;
    const bool chunked = seq_lens[i] < prefill_len[slot];  // more of the prompt is to come
    const int64_t sampled = chunked ? 0 : num_sampled[i];
    num_sampled.set(i, sampled);
    num_rejected.set(i, chunked ? 0 : span(cu_num_logits, i).length() - sampled);
  }
  return nullptr;
}

const char* post_update(const PostUpdateArgs& args) {
  const int64_t requests = args.idx_mapping.size;
  if (args.num_sampled.size < requests || args.num_rejected.size < requests ||
      args.sampled_tokens.rows < requests) {
    return "num_sampled, num_rejected or sampled_tokens is too short";
  }
  if (args.query_start_loc && args.query_start_loc.size < requests + 1) return kQuery;
  for (int64_t i = 0; i < requests; ++i) {
    const int64_t slot = args.idx_mapping[i];
    if (slot < 0) continue;
    if (!args.num_computed_tokens.has(slot) || !args.last_sampled_tokens.has(slot) ||
        !args.total_len.has(slot) || !args.all_token_ids.has(slot) ||
        (args.output_bin_counts && !args.output_bin_counts.has(slot))) {
      return kSlot;
    }
    const int64_t sampled = args.num_sampled[i];
    if (sampled > args.sampled_tokens.cols) return "num_sampled exceeds sampled_tokens";
    const int64_t total = args.total_len[slot];
    if (total < 0) return "a total_len is negative";
    for (int64_t k = 0; k < sampled; ++k) {
      const int64_t token = args.sampled_tokens.at(i, k);
      // With asynchronous scheduling a request that has reached the model's length can still have a
      // step in flight. Its token is thrown away by the scheduler and has no place in the row.
      if (total + k < args.all_token_ids.cols) args.all_token_ids.set(slot, total + k, token);
      if (args.output_bin_counts) {
        if (token < 0 || token >= args.output_bin_counts.cols) return "a token id is out of range";
        args.output_bin_counts.set(slot, token, args.output_bin_counts.at(slot, token) + 1);
      }
    }
    if (sampled > 0) {
      args.last_sampled_tokens.set(slot, args.sampled_tokens.at(i, sampled - 1));
      args.total_len.set(slot, total + sampled);
    }
    const int64_t computed = args.query_start_loc ? span(args.query_start_loc, i).length() : 0;
    args.num_computed_tokens.set(slot,
                                 args.num_computed_tokens[slot] + computed - args.num_rejected[i]);
  }
  return nullptr;
}

const char* post_update_num_computed_tokens(const Ints& idx_mapping,
                                            const Ints& num_computed_tokens,
                                            const Ints& query_start_loc) {
  if (query_start_loc.size < idx_mapping.size + 1) return kQuery;
  for (int64_t i = 0; i < idx_mapping.size; ++i) {
    const int64_t slot = idx_mapping[i];
    if (!num_computed_tokens.has(slot)) return kSlot;
    num_computed_tokens.set(slot, num_computed_tokens[slot] + span(query_start_loc, i).length());
  }
  return nullptr;
}

}  // namespace vllm_diffusion
