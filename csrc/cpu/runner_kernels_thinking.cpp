// The thinking budget and the replay of traces.
#include <algorithm>

#include "runner_kernels_rows.h"

namespace vllm_diffusion {
namespace {

// Whether `marker` stands at position `at` of the sequence that token(i) reads.
template <typename F>
bool stands_at(const Ints& marker, int64_t at, F token) {
  for (int64_t k = 0; k < marker.size; ++k) {
    if (token(at + k) != marker[k]) return false;
  }
  return true;
}

// The last place in [low, end - marker's length] where `marker` stands, or -1.
template <typename F>
int64_t find_last(const Ints& marker, int64_t low, int64_t end, F token) {
  for (int64_t at = end - marker.size; at >= std::max<int64_t>(low, 0); --at) {
    if (stands_at(marker, at, token)) return at;
  }
  return -1;
}

bool slot_fits(const ThinkingArgs& args, int64_t slot) {
  return args.budget.has(slot) && args.all_token_ids.has(slot) && args.total_len.has(slot) &&
         args.last_start.has(slot) && args.last_end.has(slot);
}

}  // namespace

const char* update_marker_cache(const ThinkingArgs& args, const Ints& requests,
                                const Ints& scan_pos, int64_t longest_marker) {
  for (int64_t i = 0; i < requests.size; ++i) {
    const int64_t slot = requests[i];
    if (!slot_fits(args, slot) || !scan_pos.has(slot)) return kSlotProblem;
    if (args.budget[slot] < 0) continue;
    // A finished request's last step may be in flight beyond the end of its row.
    const int64_t end = std::min(args.total_len[slot], args.all_token_ids.cols);
    const bool stale = scan_pos[slot] > end;
    const int64_t from = stale ? 0 : scan_pos[slot];
    auto token = [&](int64_t at) { return args.all_token_ids.at(slot, at); };
    const int64_t start = find_last(args.start, from, end, token);
    const int64_t natural = find_last(args.natural_end, from, end, token);
    if (start >= 0 || stale) args.last_start.set(slot, start);
    if (natural >= 0 || stale) args.last_end.set(slot, natural);
    scan_pos.set(slot, std::max<int64_t>(0, end - (longest_marker - 1)));
  }
  return nullptr;
}

const char* apply_thinking_budget(const ThinkingArgs& args, const Logits& logits,
                                  const RowContext& context, const Ints& forced_end) {
  if (context.requests.size < logits.rows || context.local_pos.size < logits.rows ||
      context.token_ids.size < logits.rows) {
    return kRowsProblem;
  }
  for (int64_t row = 0; row < logits.rows; ++row) {
    const int64_t slot = context.requests[row];
    if (!slot_fits(args, slot)) return kSlotProblem;
    if (args.budget[slot] < 0) continue;
    const int64_t drafts = context.local_pos[row];
    const int64_t committed = args.total_len[slot];
    if (drafts < 0 || drafts > row) return kRowsProblem;
    const int64_t end = committed + drafts;
    auto token = [&](int64_t at) {
      if (at >= committed) return context.token_ids[row - drafts + at - committed + 1];
      return at < args.all_token_ids.cols ? args.all_token_ids.at(slot, at) : -1;
    };
    // The cache knows the committed tokens; a marker may end among the drafts.
    const int64_t start = std::max(
        args.last_start[slot], find_last(args.start, committed - args.start.size + 1, end, token));
    const int64_t natural =
        std::max(args.last_end[slot],
                 find_last(args.natural_end, committed - args.natural_end.size + 1, end, token));
    if (start < 0 || start <= natural) continue;  // not thinking
    if (end - (start + args.start.size) < args.budget[slot]) continue;

    // Force the end marker's next token: it may have been begun already.
    int64_t begun = std::min(forced_end.size - 1, end);
    auto tail = [&](int64_t length) {
      for (int64_t k = 0; k < length; ++k) {
        if (token(end - length + k) != forced_end[k]) return false;
      }
      return true;
    };
    while (begun > 0 && !tail(begun)) --begun;
    const int64_t forced = forced_end[begun];
    if (forced < 0 || forced >= logits.vocab) return kTokenProblem;
    logits.row(row)[forced] = 1e9f;
  }
  return nullptr;
}

const char* trace_replay(const Ints& sampled, const Ints& idx_mapping, const IntRows& trace,
                         const Ints& trace_len, const Ints& total_len, const Ints& prompt_len) {
  if (sampled.size < idx_mapping.size) return kRowsProblem;
  for (int64_t i = 0; i < idx_mapping.size; ++i) {
    const int64_t slot = idx_mapping[i];
    if (slot < 0) continue;
    if (!trace.has(slot) || !trace_len.has(slot) || !total_len.has(slot) || !prompt_len.has(slot)) {
      return kSlotProblem;
    }
    const int64_t step = total_len[slot] - prompt_len[slot];
    if (step < 0 || step >= std::min(trace_len[slot], trace.cols)) continue;
    sampled.set(i, trace.at(slot, step));
  }
  return nullptr;
}

}  // namespace vllm_diffusion
