// The sampler of vLLM's Model Runner V2 on a CPU: what the Triton kernels under
// vllm/v1/worker/gpu/sample/ do to logits. Raw pointers only; no torch. See runner_kernels.h for
// what the functions return and check.
#pragma once

#include <cstdint>

#include "common.h"
#include "runner_kernels.h"

namespace vllm_diffusion {

// `vocab` logits a row, rows `stride` elements apart.
struct Logits {
  void* data;
  Dtype dtype;
  int64_t rows;
  int64_t vocab;
  int64_t stride;

  // Only for float32.
  float* row(int64_t i) const { return static_cast<float*>(data) + i * stride; }
};

// Tokens of a row's own request that come before it in the step: token_ids[row - local_pos[row] +
// 1] to token_ids[row]. They are drafts, not yet in the request's state.
struct RowContext {
  Ints requests;   // [rows] -> slot of the request
  Ints token_ids;  // [rows]
  Ints local_pos;  // [rows]
};

// --- sample/gumbel.py, sample/min_p.py -----------------------------------------------------------

const char* apply_temperature(const Logits& logits, const Ints& requests, const float* temperature,
                              int64_t slots, const Parallel& parallel);

const char* apply_min_p(const Logits& logits, const Ints& requests, const float* min_p,
                        int64_t slots, const Parallel& parallel);

// Slices of a row that the Gumbel-max draw reports on; upstream's block size.
constexpr int64_t kGumbelBlock = 1024;

struct GumbelArgs {
  Logits logits;
  Ints requests;             // [rows], negative: no request, plain argmax
  const int64_t* seeds;      // [slots]
  const float* temperature;  // [slots], 0: plain argmax
  int64_t slots;
  Ints pos;             // [rows]
  int64_t blocks;       // columns of the outputs
  int64_t* best_token;  // [rows, blocks]
  void* best_score;     // [rows, blocks], float64 if `fp64`, else float32
  bool apply_temperature;
  bool drafting;
  bool fp64;  // 53 random bits a token instead of 32
};
const char* gumbel_sample(const GumbelArgs& args, const Parallel& parallel);

// --- sample/logprob.py, sample/prompt_logprob.py, sample/output.py, metrics/logits.py ------------

// output[row, k] = log softmax(logits[row])[ids[row, k]].
const char* topk_log_softmax(float* output, const Logits& logits, const IntRows& ids, int64_t topk,
                             const Parallel& parallel);

// output[row] = number of logits that are not below that of ids[row].
const char* ranks(const Ints& output, const Logits& logits, const Ints& ids,
                  const Parallel& parallel);

const char* num_nans(const Logits& logits, const Ints& output, const Parallel& parallel);

struct LogprobIdsArgs {
  IntRows out_ids;  // [rows, 1 + columns]
  bool* out_valid;  // [rows, 1 + columns]
  int64_t out_valid_stride;
  Ints sampled;     // [rows]
  IntRows topk;     // [rows, num_topk]
  Ints requests;    // [rows]
  Ints num_custom;  // [slots]
  IntRows custom;   // [slots, most ids a request]
  int64_t num_topk;
};
const char* fill_logprob_token_ids(const LogprobIdsArgs& args);

// The token that follows each token of the batch.
const char* prompt_logprobs_token_ids(const Ints& output, const Ints& query_start_loc,
                                      const Ints& idx_mapping, const Ints& num_computed_tokens,
                                      const IntRows& all_token_ids);

struct SamplingMaskArgs {
  Logits logits;
  Ints cu_num_logits;  // [requests + 1]
  Ints num_sampled;    // [requests]
  IntRows token_ids;   // [requests * rows_per_request, >= max_num_kept]
  uint8_t* packed;     // [requests * rows_per_request, packed_stride], bits from the lowest
  int64_t packed_stride;
  Ints counts;  // [requests * rows_per_request]
  int64_t max_num_kept;
  int64_t rows_per_request;
};
const char* compact_sampling_mask(const SamplingMaskArgs& args, const Parallel& parallel);

// --- sample/penalties.py, sample/logit_bias.py, sample/bad_words.py, structured_outputs.py -------

struct PenaltiesArgs {
  Logits logits;
  RowContext context;
  const float* repetition;    // [slots]
  const float* frequency;     // [slots]
  const float* presence;      // [slots]
  IntRows prompt_bin_mask;    // [slots, vocabulary / 32], bits from the lowest
  IntRows output_bin_counts;  // [slots, vocabulary]
};
const char* apply_penalties(const PenaltiesArgs& args, const Parallel& parallel);

const char* bincount(const Ints& requests, const IntRows& all_token_ids, const Ints& prompt_len,
                     const Ints& prefill_len, const IntRows& prompt_bin_mask,
                     const IntRows& output_bin_counts);

struct BiasArgs {
  Logits logits;
  Ints requests;      // [rows]
  Ints num_allowed;   // [slots]
  IntRows allowed;    // [slots, most]
  Ints num_bias;      // [slots]
  IntRows bias_ids;   // [slots, most]
  const float* bias;  // [slots, bias_stride]
  int64_t bias_stride;
  Ints pos;                      // [rows]
  Ints min_lens;                 // [slots]
  Ints num_stop;                 // [slots]
  Ints restore_when_all_masked;  // [slots]
  IntRows stop;                  // [slots, most]
  bool check_all_masked;
};
const char* apply_bias(const BiasArgs& args, const Parallel& parallel);

struct BadWordsArgs {
  Logits logits;
  RowContext context;
  IntRows words;          // [slots, most tokens]
  IntRows offsets;        // [slots, most words + 1]
  Ints num_words;         // [slots]
  IntRows all_token_ids;  // [slots, model length]
  Ints prompt_len;        // [slots]
  Ints total_len;         // [slots]
};
const char* apply_bad_words(const BadWordsArgs& args);

// Row r of the bitmask belongs to position `mapping[r] % stride` of the batch's request
// `mapping[r] / stride`; a 0 bit forbids its token.
const char* apply_grammar_bitmask(const Logits& logits, const Ints& mapping,
                                  const Ints& cu_num_logits, const IntRows& bitmask,
                                  int64_t mapping_stride);

// --- sample/thinking_budget.py, sample/trace_replay.py -------------------------------------------

// State of the thinking budget, one entry a slot, and the three markers.
struct ThinkingArgs {
  Ints budget;  // negative: none
  IntRows all_token_ids;
  Ints total_len;
  Ints last_start;  // where the last start marker begins, or -1
  Ints last_end;    // where the last natural end marker begins, or -1
  Ints start;
  Ints natural_end;
};
const char* update_marker_cache(const ThinkingArgs& args, const Ints& requests,
                                const Ints& scan_pos, int64_t longest_marker);
const char* apply_thinking_budget(const ThinkingArgs& args, const Logits& logits,
                                  const RowContext& context, const Ints& forced_end);

const char* trace_replay(const Ints& sampled, const Ints& idx_mapping, const IntRows& trace,
                         const Ints& trace_len, const Ints& total_len, const Ints& prompt_len);

}  // namespace vllm_diffusion
