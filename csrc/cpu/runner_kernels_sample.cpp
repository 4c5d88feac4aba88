// Temperature, min-p and the Gumbel-max draw of Model Runner V2's sampler.
#include "runner_kernels_rows.h"

namespace vllm_diffusion {

const char* apply_temperature(const Logits& logits, const Ints& requests, const float* temperature,
                              int64_t slots, const Parallel& parallel) {
  if (requests.size < logits.rows) return kRowsProblem;
  return for_rows(logits, parallel, [&](int64_t row) -> const char* {
    const int64_t slot = requests[row];
    if (slot < 0 || slot >= slots) return kSlotProblem;
    const float divisor = temperature[slot];
    if (divisor == 0.0f || divisor == 1.0f) return nullptr;
    float* x = logits.row(row);
    for (int64_t i = 0; i < logits.vocab; ++i) x[i] /= divisor;
    return nullptr;
  });
}

const char* apply_min_p(const Logits& logits, const Ints& requests, const float* min_p,
                        int64_t slots, const Parallel& parallel) {
  if (requests.size < logits.rows) return kRowsProblem;
  return for_rows(logits, parallel, [&](int64_t row) -> const char* {
    const int64_t slot = requests[row];
    if (slot < 0 || slot >= slots) return kSlotProblem;
    if (min_p[slot] == 0.0f) return nullptr;
    const float threshold = row_max(logits, row) + std::log(min_p[slot]);
    float* x = logits.row(row);
    for (int64_t i = 0; i < logits.vocab; ++i) x[i] = x[i] < threshold ? -INFINITY : x[i];
    return nullptr;
  });
}

namespace {

// Keeps a draft's noise apart from that of its verification (upstream's _DRAFT_NOISE_SALT).
constexpr int64_t kDraftSalt = int64_t{1} << 30;
// Starts the second hash, of whose bits the upper half of a 53-bit number is made.
constexpr uint32_t kUpperDomain = 0x9E3779B9u;
constexpr float kLn2 = 0.69314724f;  // rounded up

// MurmurHash3 (x86, 32 bits; Appleby 2011) of four words: the seed's halves, the position and the
// token id. The first three are the same for a whole row.
uint32_t mix(uint32_t hash, uint32_t word) {
  word *= 0xCC9E2D51u;
  word = word << 15 | word >> 17;
  hash ^= word * 0x1B873593u;
  hash = hash << 13 | hash >> 19;
  return hash * 5u + 0xE6546B64u;
}

uint32_t prefix(uint32_t domain, int64_t seed, int64_t pos) {
  const uint64_t bits = static_cast<uint64_t>(seed);
  uint32_t hash = mix(domain, static_cast<uint32_t>(bits));
  hash = mix(hash, static_cast<uint32_t>(bits >> 32));
  return mix(hash, static_cast<uint32_t>(static_cast<uint64_t>(pos)));
}

uint32_t finish(uint32_t prefix, uint32_t token) {
  uint32_t hash = mix(prefix, token) ^ 16u;  // 16 bytes were hashed
  hash = (hash ^ hash >> 16) * 0x85EBCA6Bu;
  hash = (hash ^ hash >> 13) * 0xC2B2AE35u;
  return hash ^ hash >> 16;
}

// Gumbel noise of 32 bits. The tail that wins an argmax is where u is near 0.
double noise32(uint32_t bits) {
  const double u = (bits + 0.5) * 0x1p-32;
  return -std::log(-std::log1p(-u));
}

// No noise32(bits) is above this: -log1p(-u) >= u and log2(bits + 1/2) >= 31 - clz(bits).
float noise32_bound(uint32_t bits) {
  const int zeros = bits == 0 ? 32 : __builtin_clz(bits);
  return kLn2 * static_cast<float>(zeros + 1) + 1e-3f;  // more than float32 rounding of a score
}

double noise64(uint32_t upper, uint32_t lower) {
  const uint64_t bits = (static_cast<uint64_t>(upper) << 32 | lower) >> 11;
  const double u = std::min((static_cast<double>(bits) + 0.5) * 0x1p-53, 1.0 - 0x1p-53);
  return -std::log(-std::log(u));
}
constexpr double kNoise64Max = 37.5;

struct Best {
  double score = -INFINITY;
  int64_t token = -1;

  void offer(double candidate, int64_t id) {
    if (candidate > score || (candidate == score && (token < 0 || id < token))) {
      score = candidate;
      token = id;
    }
  }
};

// The draw within one slice. Most tokens are out of reach of the best so far whatever their noise,
// and the bits alone say so for most of the others: few logarithms are taken.
Best draw(const float* x, int64_t begin, int64_t count, const GumbelArgs& args, float temperature,
          int64_t seed, int64_t pos) {
  const bool scale = args.apply_temperature;
  auto logit = [&](int64_t i) { return scale ? x[i] / temperature : x[i]; };
  const uint32_t lower = prefix(0, seed, pos);
  const uint32_t upper = prefix(kUpperDomain, seed, pos);
  uint32_t bits[kGumbelBlock];
  for (int64_t i = 0; i < count; ++i) bits[i] = finish(lower, static_cast<uint32_t>(begin + i));

  Best best;
  auto consider = [&](int64_t i) {
    const double noise = args.fp64
                             ? noise64(finish(upper, static_cast<uint32_t>(begin + i)), bits[i])
                             : noise32(bits[i]);
    const double score = logit(i) + noise;
    best.offer(args.fp64 ? score : static_cast<float>(score), begin + i);
  };
  int64_t highest = 0;
  for (int64_t i = 1; i < count; ++i) highest = x[i] > x[highest] ? i : highest;
  consider(highest);  // a good start
  for (int64_t i = 0; i < count; ++i) {
    const double bound = args.fp64 ? kNoise64Max : noise32_bound(bits[i]);
    if (logit(i) + bound >= best.score) consider(i);
  }
  return best;
}

}  // namespace

static_assert(kGumbelBlock <= kRowSlice);

const char* gumbel_sample(const GumbelArgs& args, const Parallel& parallel) {
  const Logits& logits = args.logits;
  if (args.requests.size < logits.rows || args.pos.size < logits.rows) return kRowsProblem;
  if (args.blocks * kGumbelBlock < logits.vocab) return "too few blocks for the vocabulary";
  for (int64_t row = 0; row < logits.rows; ++row) {
    if (args.requests[row] >= args.slots) return kSlotProblem;
  }
  auto range = [&](int64_t from, int64_t to) {
    RowBuffer buffer;
    for (int64_t at = from; at < to; ++at) {
      const int64_t row = at / args.blocks;
      const int64_t begin = at % args.blocks * kGumbelBlock;
      const int64_t count = std::min(kGumbelBlock, logits.vocab - begin);
      const int64_t slot = args.requests[row];
      const float temperature = slot < 0 ? 0.0f : args.temperature[slot];
      Best best;
      if (count > 0) {
        const float* x = slice_of(logits, row, begin, count, buffer);
        if (temperature != 0.0f) {
          const int64_t pos = args.pos[row] + (args.drafting ? kDraftSalt : 0);
          best = draw(x, begin, count, args, temperature, args.seeds[slot], pos);
        } else {
          for (int64_t i = 0; i < count; ++i) {
            if (x[i] > best.score) best = {x[i], begin + i};
          }
        }
      }
      args.best_token[at] = best.token < 0 ? begin : best.token;  // nothing but -inf or NaN
      if (args.fp64) {
        static_cast<double*>(args.best_score)[at] = best.score;
      } else {
        static_cast<float*>(args.best_score)[at] = static_cast<float>(best.score);
      }
    }
  };
  const int64_t total = logits.rows * args.blocks;
  constexpr int64_t kGrain = 16;
  if (total <= kGrain) {
    range(0, total);
  } else {
    parallel_for(parallel, total, kGrain, range);
  }
  return nullptr;
}

}  // namespace vllm_diffusion
