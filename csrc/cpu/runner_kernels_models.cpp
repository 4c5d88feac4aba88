// What some models need beside token ids: positions in several dimensions, embeddings for a prompt.
#include <algorithm>
#include <cstring>

#include "runner_kernels.h"

namespace vllm_diffusion {
namespace {

constexpr const char* kSlot = "a request's slot is out of range";
constexpr const char* kQuery = "query_start_loc does not fit the batch's tokens";

}  // namespace

const char* prepare_rope_positions(const RopeArgs& args) {
  if (args.query_start_loc.size < args.idx_mapping.size + 1) return kQuery;
  if (args.dims > args.positions.rows) return "positions has too few rows";
  for (int64_t i = 0; i < args.idx_mapping.size; ++i) {
    const int64_t slot = args.idx_mapping[i];
    if (!args.prefill_lens.has(slot) || !args.num_computed_tokens.has(slot) ||
        !args.prefill_delta.has(slot)) {
      return kSlot;
    }
    const int64_t begin = args.query_start_loc[i];
    const int64_t end = args.query_start_loc[i + 1];
    if (begin < 0 || begin > end || end > args.positions.cols) return kQuery;
    const int64_t computed = args.num_computed_tokens[slot];
    const bool prefill = computed < args.prefill_lens[slot];
    for (int64_t d = 0; d < args.dims; ++d) {
      const int64_t row = slot * args.slot_stride + d * args.dim_stride;
      const int64_t target = d * args.positions.stride + begin;
      if (prefill) {
        const int64_t known = std::min(end - begin, args.prefill_positions.size - row - computed);
        copy_ints(args.prefill_positions, row + computed, args.positions.flat, target, known);
      } else {
        const int64_t first = computed + args.prefill_delta[slot];
        for (int64_t t = 0; t < end - begin; ++t) args.positions.flat.set(target + t, first + t);
      }
    }
  }
  return nullptr;
}

const char* apply_prompt_embeds(const PromptEmbedsArgs& args) {
  if (args.query_start_loc.size < args.idx_mapping.size + 1) return kQuery;
  for (int64_t i = 0; i < args.idx_mapping.size; ++i) {
    const int64_t slot = args.idx_mapping[i];
    if (!args.embeds_lens.has(slot) || !args.num_computed_tokens.has(slot)) return kSlot;
    const int64_t begin = args.query_start_loc[i];
    const int64_t end = args.query_start_loc[i + 1];
    if (begin < 0 || begin > end || end > args.rows) return kQuery;
    const int64_t computed = args.num_computed_tokens[slot];
    const int64_t count = std::min(end - begin, args.embeds_lens[slot] - computed);
    const char* source = reinterpret_cast<const char*>(static_cast<uintptr_t>(args.embeds[slot]));
    const char* is_token =
        reinterpret_cast<const char*>(static_cast<uintptr_t>(args.is_token[slot]));
    for (int64_t t = 0; t < count; ++t) {
      if (is_token != nullptr && is_token[computed + t] != 0) continue;
      std::memcpy(args.target + (begin + t) * args.row_stride,
                  source + (computed + t) * args.row_bytes, static_cast<size_t>(args.row_bytes));
    }
  }
  return nullptr;
}

}  // namespace vllm_diffusion
