// Log probabilities, ranks and what else the sampler reports about rows of logits.
#include "runner_kernels_rows.h"

namespace vllm_diffusion {
namespace {

// Four lanes, in compiler vector extensions: every x86-64 and every AArch64 has them.
constexpr int64_t kWidth = 4;
typedef float VecF __attribute__((vector_size(kWidth * 4)));
typedef uint32_t VecU __attribute__((vector_size(kWidth * 4)));

constexpr float kExpFloor = -87.0f;  // e^x is 1.6e-38 there, nothing beside a sum of 1 or more

// e^x for x <= 0 within 2 ulp; NaN stays NaN. Reduction to |r| <= ln(2)/2 and a polynomial of
// degree 6.
inline VecF exp_nonpositive(VecF x) {
  const VecF floor = VecF{} + kExpFloor;
  x = x < floor ? floor : x;
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits; 127 is the exponent bias.
  const VecF shifted = x * 0x1.715476p+0f + (0x1.8p23f + 127.0f);
  const VecF n = shifted - (0x1.8p23f + 127.0f);
  const VecF r = (x - n * 0x1.62e400p-1f) - n * 0x1.7f7d1cp-20f;
  VecF p = VecF{} + 0x1.6ab980p-10f;
  p = p * r + 0x1.126d0cp-7f;
  p = p * r + 0x1.55589ap-5f;
  p = p * r + 0x1.55540ap-3f;
  p = p * r + 0x1.fffffap-2f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  VecU bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits <<= 23;
  VecF scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return p * scale;
}

// log(sum(exp(x - highest))) of a row.
double log_sum(const Logits& logits, int64_t row, float highest) {
  double sum = 0.0;
  for_slices(logits, row, [&](const float* x, int64_t, int64_t count) {
    constexpr int64_t kStep = 4 * kWidth;
    VecF parts[4] = {};
    for (int64_t i = 0; i < count; i += kStep) {
      alignas(16) float four[kStep];
      const float* from = x + i;
      if (count - i < kStep) {  // the end of the row
        std::fill(four, four + kStep, -INFINITY);
        std::copy(from, x + count, four);
        from = four;
      }
      for (int64_t k = 0; k < 4; ++k) {
        VecF values;
        std::memcpy(&values, from + k * kWidth, sizeof(values));
        parts[k] += exp_nonpositive(values - highest);
      }
    }
    for (const VecF& part : parts) {
      for (int64_t k = 0; k < kWidth; ++k) sum += static_cast<double>(part[k]);
    }
  });
  return std::log(sum);
}

}  // namespace

const char* topk_log_softmax(float* output, const Logits& logits, const IntRows& ids, int64_t topk,
                             const Parallel& parallel) {
  if (ids.rows < logits.rows || ids.cols < topk) return kRowsProblem;
  return for_rows(logits, parallel, [&](int64_t row) -> const char* {
    const float highest = row_max(logits, row);
    const double norm = log_sum(logits, row, highest);
    for (int64_t k = 0; k < topk; ++k) {
      const int64_t id = ids.at(row, k);
      if (id < 0 || id >= logits.vocab) return kTokenProblem;
      const double shifted = static_cast<double>(logit_at(logits, row, id)) - highest;
      output[row * topk + k] = static_cast<float>(shifted - norm);
    }
    return nullptr;
  });
}

const char* ranks(const Ints& output, const Logits& logits, const Ints& ids,
                  const Parallel& parallel) {
  if (output.size < logits.rows || ids.size < logits.rows) return kRowsProblem;
  return for_rows(logits, parallel, [&](int64_t row) -> const char* {
    const int64_t id = ids[row];
    if (id < 0 || id >= logits.vocab) return kTokenProblem;
    const float chosen = logit_at(logits, row, id);
    int64_t rank = 0;
    for_slices(logits, row, [&](const float* x, int64_t, int64_t count) {
      int32_t above = 0;
      for (int64_t i = 0; i < count; ++i) above += x[i] >= chosen;
      rank += above;
    });
    output.set(row, rank);
    return nullptr;
  });
}

const char* num_nans(const Logits& logits, const Ints& output, const Parallel& parallel) {
  if (output.size < logits.rows) return kRowsProblem;
  return for_rows(logits, parallel, [&](int64_t row) -> const char* {
    int64_t found = 0;
    for_slices(logits, row, [&](const float* x, int64_t, int64_t count) {
      int32_t nans = 0;
      for (int64_t i = 0; i < count; ++i) nans += x[i] != x[i];
      found += nans;
    });
    output.set(row, found);
    return nullptr;
  });
}

const char* fill_logprob_token_ids(const LogprobIdsArgs& args) {
  const int64_t rows = args.out_ids.rows;
  if (args.sampled.size < rows || args.requests.size < rows) return kRowsProblem;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t slot = args.requests[row];
    if (!args.num_custom.has(slot) || !args.custom.has(slot)) return kSlotProblem;
    const int64_t num_custom = args.num_custom[slot];
    const bool use_custom = num_custom > 0;
    const int64_t count = use_custom ? num_custom : args.num_topk;
    const IntRows& from = use_custom ? args.custom : args.topk;
    const int64_t from_row = use_custom ? slot : row;
    if (count >= args.out_ids.cols || (count > 0 && (count > from.cols || !from.has(from_row)))) {
      return "more token ids than columns";
    }
    bool* valid = args.out_valid + row * args.out_valid_stride;
    args.out_ids.set(row, 0, args.sampled[row]);
    valid[0] = true;
    for (int64_t k = 0; k < count; ++k) {
      args.out_ids.set(row, k + 1, from.at(from_row, k));
      valid[k + 1] = true;
    }
  }
  return nullptr;
}

const char* prompt_logprobs_token_ids(const Ints& output, const Ints& query_start_loc,
                                      const Ints& idx_mapping, const Ints& num_computed_tokens,
                                      const IntRows& all_token_ids) {
  if (query_start_loc.size < idx_mapping.size + 1) return kRowsProblem;
  for (int64_t i = 0; i < idx_mapping.size; ++i) {
    const int64_t slot = idx_mapping[i];
    if (!num_computed_tokens.has(slot) || !all_token_ids.has(slot)) return kSlotProblem;
    const int64_t begin = query_start_loc[i];
    const int64_t end = query_start_loc[i + 1];
    if (begin < 0 || begin > end || end > output.size) return "more tokens than the output holds";
    const int64_t first = num_computed_tokens[slot] + 1;
    if (first < 1) return "a num_computed_tokens is negative";
    // What follows the last token of a row does not exist, and nobody asks for it; but the id must
    // be one of the vocabulary.
    const int64_t known = std::clamp<int64_t>(all_token_ids.cols - first, 0, end - begin);
    copy_ints(all_token_ids.flat, slot * all_token_ids.stride + first, output, begin, known);
    for (int64_t t = begin + known; t < end; ++t) output.set(t, 0);
  }
  return nullptr;
}

const char* compact_sampling_mask(const SamplingMaskArgs& args, const Parallel& parallel) {
  const int64_t requests = args.num_sampled.size;
  const int64_t vocab = args.logits.vocab;
  if (args.cu_num_logits.size < requests + 1) return kRowsProblem;
  Logits output = args.logits;  // for_rows walks over the output's rows
  output.rows = requests * args.rows_per_request;
  if (args.counts.size < output.rows || args.token_ids.rows < output.rows ||
      args.token_ids.cols < args.max_num_kept || args.packed_stride * 8 < vocab) {
    return "an output is too small";
  }
  return for_rows(output, parallel, [&](int64_t row) -> const char* {
    const int64_t request = row / args.rows_per_request;
    const int64_t place = row % args.rows_per_request;
    if (place >= args.num_sampled[request]) {
      args.counts.set(row, 0);
      return nullptr;
    }
    const int64_t source = args.cu_num_logits[request] + place;
    if (source < 0 || source >= args.logits.rows) return kRowsProblem;
    uint8_t* packed = args.packed + row * args.packed_stride;
    std::memset(packed, 0, static_cast<size_t>((vocab + 7) / 8));
    int64_t kept = 0;
    for_slices(args.logits, source, [&](const float* x, int64_t begin, int64_t count) {
      for (int64_t i = 0; i < count; ++i) {
        if (!(x[i] > -INFINITY && x[i] < INFINITY)) continue;
        const int64_t id = begin + i;
        packed[id / 8] = static_cast<uint8_t>(packed[id / 8] | 1u << (id % 8));
        if (kept < args.max_num_kept) args.token_ids.set(row, kept, id);
        ++kept;
      }
    });
    args.counts.set(row, kept);
    return nullptr;
  });
}

}  // namespace vllm_diffusion
