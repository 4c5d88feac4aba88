// Penalties, biases and bans, in place on float32 logits (the grammar's on any).
#include <vector>

#include "runner_kernels_rows.h"

namespace vllm_diffusion {

const char* apply_penalties(const PenaltiesArgs& args, const Parallel& parallel) {
  const Logits& logits = args.logits;
  const RowContext& context = args.context;
  if (context.requests.size < logits.rows || context.local_pos.size < logits.rows ||
      context.token_ids.size < logits.rows) {
    return kRowsProblem;
  }
  if (args.output_bin_counts.cols < logits.vocab || args.prompt_bin_mask.cols * 32 < logits.vocab) {
    return "the token counts are narrower than the logits";
  }
  return for_rows(logits, parallel, [&](int64_t row) -> const char* {
    const int64_t slot = context.requests[row];
    if (!args.output_bin_counts.has(slot) || !args.prompt_bin_mask.has(slot)) return kSlotProblem;
    const float repetition = args.repetition[slot];
    const float frequency = args.frequency[slot];
    const float presence = args.presence[slot];
    if (repetition == 1.0f && frequency == 0.0f && presence == 0.0f) return nullptr;

    const int32_t* counts = static_cast<const int32_t*>(args.output_bin_counts.flat.data) +
                            slot * args.output_bin_counts.stride;
    std::vector<int32_t> with_drafts;
    if (const int64_t drafts = context.local_pos[row]; drafts > 0) {
      if (drafts > row) return kRowsProblem;
      with_drafts.assign(counts, counts + logits.vocab);
      for (int64_t k = row - drafts + 1; k <= row; ++k) {
        const int64_t token = context.token_ids[k];
        if (token < 0 || token >= logits.vocab) return kTokenProblem;
        ++with_drafts[static_cast<size_t>(token)];
      }
      counts = with_drafts.data();
    }
    const uint32_t* prompt = static_cast<const uint32_t*>(args.prompt_bin_mask.flat.data) +
                             slot * args.prompt_bin_mask.stride;
    const float inverse = 1.0f / repetition;
    float* x = logits.row(row);
    for (int64_t i = 0; i < logits.vocab; ++i) {
      const bool generated = counts[i] > 0;
      if (generated || (prompt[i / 32] >> (i % 32) & 1u))
        x[i] *= x[i] > 0.0f ? inverse : repetition;
      if (generated) {
        x[i] -= frequency * static_cast<float>(counts[i]);
        x[i] -= presence;
      }
    }
    return nullptr;
  });
}

const char* bincount(const Ints& requests, const IntRows& all_token_ids, const Ints& prompt_len,
                     const Ints& prefill_len, const IntRows& prompt_bin_mask,
                     const IntRows& output_bin_counts) {
  for (int64_t i = 0; i < requests.size; ++i) {
    const int64_t slot = requests[i];
    if (!all_token_ids.has(slot) || !prompt_len.has(slot) || !prefill_len.has(slot) ||
        !prompt_bin_mask.has(slot) || !output_bin_counts.has(slot)) {
      return kSlotProblem;
    }
    const int64_t end = prefill_len[slot];
    if (end > all_token_ids.cols) return "a prefill_len exceeds its row of tokens";
    uint32_t* prompt =
        static_cast<uint32_t*>(prompt_bin_mask.flat.data) + slot * prompt_bin_mask.stride;
    for (int64_t t = 0; t < end; ++t) {
      const int64_t token = all_token_ids.at(slot, t);
      if (token < 0 || token >= output_bin_counts.cols || token / 32 >= prompt_bin_mask.cols) {
        return kTokenProblem;
      }
      if (t < prompt_len[slot]) {
        prompt[token / 32] |= 1u << (token % 32);
      } else {
        output_bin_counts.set(slot, token, output_bin_counts.at(slot, token) + 1);
      }
    }
  }
  return nullptr;
}

namespace {

// Whether the first `count` ids of a row of `ids` may index the logits.
bool ids_fit(const IntRows& ids, int64_t slot, int64_t count, int64_t vocab) {
  if (count > ids.cols || !ids.has(slot)) return false;
  for (int64_t k = 0; k < count; ++k) {
    const int64_t id = ids.at(slot, k);
    if (id < 0 || id >= vocab) return false;
  }
  return true;
}

void keep_only(float* x, int64_t vocab, const IntRows& ids, int64_t slot, int64_t count) {
  std::vector<float> kept(static_cast<size_t>(count));
  for (int64_t k = 0; k < count; ++k) kept[static_cast<size_t>(k)] = x[ids.at(slot, k)];
  std::fill(x, x + vocab, -INFINITY);
  for (int64_t k = 0; k < count; ++k) x[ids.at(slot, k)] = kept[static_cast<size_t>(k)];
}

// Bans the stop tokens, unless `restore` is set and nothing else is left to choose.
void ban(float* x, int64_t vocab, const IntRows& ids, int64_t slot, int64_t count, bool restore) {
  std::vector<float> banned(static_cast<size_t>(count));
  for (int64_t k = 0; k < count; ++k) banned[static_cast<size_t>(k)] = x[ids.at(slot, k)];
  for (int64_t k = 0; k < count; ++k) x[ids.at(slot, k)] = -INFINITY;
  if (!restore || std::any_of(x, x + vocab, [](float value) { return value > -INFINITY; })) return;
  for (int64_t k = 0; k < count; ++k) {
    const float value = banned[static_cast<size_t>(k)];
    if (value > -INFINITY && value < INFINITY) x[ids.at(slot, k)] = value;
  }
}

}  // namespace

const char* apply_bias(const BiasArgs& args, const Parallel& parallel) {
  const Logits& logits = args.logits;
  const int64_t vocab = logits.vocab;
  if (args.requests.size < logits.rows || args.pos.size < logits.rows) return kRowsProblem;
  return for_rows(logits, parallel, [&](int64_t row) -> const char* {
    const int64_t slot = args.requests[row];
    if (!args.num_allowed.has(slot) || !args.num_bias.has(slot) || !args.num_stop.has(slot) ||
        !args.min_lens.has(slot) || !args.restore_when_all_masked.has(slot)) {
      return kSlotProblem;
    }
    float* x = logits.row(row);
    if (const int64_t count = args.num_allowed[slot]; count > 0) {
      if (!ids_fit(args.allowed, slot, count, vocab)) return kTokenProblem;
      keep_only(x, vocab, args.allowed, slot, count);
    }
    if (const int64_t count = args.num_bias[slot]; count > 0) {
      if (!ids_fit(args.bias_ids, slot, count, vocab)) return kTokenProblem;
      const float* bias = args.bias + slot * args.bias_stride;
      for (int64_t k = 0; k < count; ++k) x[args.bias_ids.at(slot, k)] += bias[k];
    }
    const int64_t count = args.num_stop[slot];
    if (count > 0 && args.pos[row] + 1 < args.min_lens[slot]) {
      if (!ids_fit(args.stop, slot, count, vocab)) return kTokenProblem;
      const bool restore = args.check_all_masked && args.restore_when_all_masked[slot] != 0;
      ban(x, vocab, args.stop, slot, count, restore);
    }
    return nullptr;
  });
}

const char* apply_bad_words(const BadWordsArgs& args) {
  const Logits& logits = args.logits;
  const RowContext& context = args.context;
  if (context.requests.size < logits.rows || context.local_pos.size < logits.rows ||
      context.token_ids.size < logits.rows) {
    return kRowsProblem;
  }
  for (int64_t row = 0; row < logits.rows; ++row) {
    const int64_t slot = context.requests[row];
    if (!args.num_words.has(slot) || !args.words.has(slot) || !args.offsets.has(slot) ||
        !args.all_token_ids.has(slot) || !args.prompt_len.has(slot) || !args.total_len.has(slot)) {
      return kSlotProblem;
    }
    const int64_t drafts = context.local_pos[row];
    const int64_t prompt_len = args.prompt_len[slot];
    const int64_t committed = args.total_len[slot] - prompt_len;
    const int64_t length = committed + drafts;  // what has been generated before this row
    if (drafts < 0 || drafts > row || prompt_len < 0 || args.num_words[slot] >= args.offsets.cols) {
      return kRowsProblem;
    }
    auto generated = [&](int64_t i) {
      if (i >= committed) return context.token_ids[row - drafts + i - committed + 1];
      // A finished request's last step may be in flight beyond the end of its row.
      const int64_t at = prompt_len + i;
      return at < args.all_token_ids.cols ? args.all_token_ids.at(slot, at) : -1;
    };
    for (int64_t w = 0; w < args.num_words[slot]; ++w) {
      const int64_t begin = args.offsets.at(slot, w);
      const int64_t end = args.offsets.at(slot, w + 1);
      if (begin < 0 || begin >= end || end > args.words.cols) return "a bad word is malformed";
      const int64_t before = end - begin - 1;  // tokens that must precede the banned one
      if (before > length) continue;
      bool match = true;
      for (int64_t k = 0; k < before && match; ++k) {
        match = args.words.at(slot, begin + k) == generated(length - before + k);
      }
      if (!match) continue;
      const int64_t banned = args.words.at(slot, end - 1);
      if (banned < 0 || banned >= logits.vocab) return kTokenProblem;
      logits.row(row)[banned] = -INFINITY;
    }
  }
  return nullptr;
}

const char* apply_grammar_bitmask(const Logits& logits, const Ints& mapping,
                                  const Ints& cu_num_logits, const IntRows& bitmask,
                                  int64_t mapping_stride) {
  if (bitmask.rows < mapping.size) return "fewer bitmasks than rows to mask";
  const int64_t known = bitmask.cols * 32;
  auto forbid = [&](int64_t at) {
    if (logits.dtype == Dtype::kFloat32) {
      static_cast<float*>(logits.data)[at] = -INFINITY;
    } else {
      static_cast<uint16_t*>(logits.data)[at] = logits.dtype == Dtype::kBFloat16 ? 0xff80 : 0xfc00;
    }
  };
  for (int64_t m = 0; m < mapping.size; ++m) {
    const int64_t request = mapping[m] / mapping_stride;
    const int64_t place = mapping[m] % mapping_stride;
    if (mapping[m] < 0 || request + 1 >= cu_num_logits.size) return "a mapping is out of range";
    const int64_t row = cu_num_logits[request] + place;
    if (row >= cu_num_logits[request + 1]) continue;  // that position was not computed
    if (row < 0 || row >= logits.rows) return kRowsProblem;
    const int64_t base = row * logits.stride;
    for (int64_t i = 0; i < logits.vocab; i += 32) {
      const uint32_t allowed = i < known ? static_cast<uint32_t>(bitmask.at(m, i / 32)) : 0u;
      if (allowed == ~0u) continue;
      const int64_t count = std::min<int64_t>(32, logits.vocab - i);
      for (int64_t k = 0; k < count; ++k) {
        if (!(allowed >> k & 1u)) forbid(base + i + k);
      }
    }
  }
  return nullptr;
}

}  // namespace vllm_diffusion
