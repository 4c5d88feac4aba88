// Gumbel-max draw over one slice.
//
// The exact score (float64, two logarithms) is computed for a handful of ids only. Since
// gumbel(u) <= -log(u), an id can beat the best score so far only if u <= e^(l / T - best): one
// exponential and one comparison, with a margin for its rounding, set all others aside.
#include "vec.h"

namespace vllm_diffusion {
namespace {

constexpr int64_t kChunk = 256;  // ids looked at together; a multiple of kLanes and of 4
constexpr float kMargin = 1e-3f;

// Philox words in 64-bit lanes: only the low half of a lane counts, which is all that the
// multiplication looks at, so that nothing has to be moved between lanes.
typedef uint64_t VecQ __attribute__((vector_size(kWidth * 4)));
constexpr int kQuads = kWidth / 2;
constexpr int kChains = 4;  // independent vectors, to hide the multiplier's latency

static inline VecQ multiply_low(VecQ a, uint32_t factor) {
#if defined(__AVX512F__)
  return (VecQ)_mm512_maskz_mul_epu32(0xff, (__m512i)a, _mm512_set1_epi64(factor));
#elif defined(__AVX2__)
  return (VecQ)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(factor));
#elif defined(__SSE2__)
  return (VecQ)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(factor));
#else
  return (a & 0xffffffffu) * static_cast<uint64_t>(factor);
#endif
}

// Writes a[0], b[0], a[1], b[1], ...
static inline void store_alternating(VecQ a, VecQ b, uint32_t* out) {
#if defined(__GNUC__) && !defined(__clang__)
  VecQ front, back;  // constant: the compiler folds the loop
  for (int k = 0; k < kQuads; ++k) {
    front[k] = static_cast<uint64_t>(k / 2 + k % 2 * kQuads);
    back[k] = front[k] + kQuads / 2;
  }
  const VecQ halves[2] = {__builtin_shuffle(a, b, front), __builtin_shuffle(a, b, back)};
#else
  uint64_t halves[2 * kQuads];
  for (int k = 0; k < kQuads; ++k) {
    halves[2 * k] = a[k];
    halves[2 * k + 1] = b[k];
  }
#endif
  std::memcpy(out, halves, sizeof(halves));
}

// philox_block for kChunk / 4 consecutive blocks.
static void random_bits(const PhiloxKey& key, int64_t first_id, uint32_t* bits) {
  VecQ lane;
  for (int k = 0; k < kQuads; ++k) lane[k] = static_cast<uint64_t>(k);
  for (int64_t q = 0; q < kChunk / 4; q += kChains * kQuads) {
    VecQ c0[kChains], c1[kChains], c2[kChains], c3[kChains];
    for (int i = 0; i < kChains; ++i) {
      c0[i] = VecQ{} + key.offset_low;
      c1[i] = VecQ{} + key.offset_high;
      c2[i] = lane + static_cast<uint64_t>(first_id / 4 + q + i * kQuads);
      c3[i] = VecQ{};
    }
    uint32_t k0 = key.seed_low, k1 = key.seed_high;
    for (int round = 0; round < 10; ++round) {
      for (int i = 0; i < kChains; ++i) {
        const VecQ a = multiply_low(c0[i], 0xD2511F53u);
        const VecQ b = multiply_low(c2[i], 0xCD9E8D57u);
        c0[i] = (b >> 32) ^ c1[i] ^ static_cast<uint64_t>(k0);
        c1[i] = b;
        c2[i] = (a >> 32) ^ c3[i] ^ static_cast<uint64_t>(k1);
        c3[i] = a;
      }
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    for (int i = 0; i < kChains; ++i) {
      const VecQ first = (c0[i] & 0xffffffffu) | (c1[i] << 32);
      const VecQ second = (c2[i] & 0xffffffffu) | (c3[i] << 32);
      store_alternating(first, second, bits + 4 * (q + i * kQuads));
    }
  }
}

static float chunk_max(const float* buffer) {
  VecF top[kParts];
  for (int p = 0; p < kParts; ++p) top[p] = load(buffer + p * kWidth);
  for (int64_t i = kLanes; i < kChunk; i += kLanes)
    for (int p = 0; p < kParts; ++p) top[p] = larger(top[p], load(buffer + i + p * kWidth));
  float out = -INFINITY;
  for (int p = 0; p < kParts; ++p)
    for (int k = 0; k < kWidth; ++k) out = top[p][k] > out ? top[p][k] : out;
  return out;
}

// Whether any of `count` ids (whole kLanes) may beat a best score that lies `lead` above top / T.
static bool any_candidate(const float* logits, const uint32_t* bits, int64_t count, float top,
                          float inverse, float lead) {
  VecI hit = {};
  for (int64_t i = 0; i < count; i += kWidth) {
    VecF x = (load(logits + i) - top) * inverse - lead;
    x = x > 0.0f ? VecF{} : x;
    VecU word;
    std::memcpy(&word, bits + i, sizeof(word));
    const VecI half =
        (VecI)(word >> 1);  // 31 bits: signed conversion is one instruction everywhere
    const VecF u = __builtin_convertvector(half, VecF) * 0x1p-31f;
    hit |= u <= exp_nonpositive(exp_clamp(x));
  }
  int32_t any = 0;
  for (int k = 0; k < kWidth; ++k) any |= hit[k];
  return any != 0;
}

}  // namespace

namespace VLLM_DIFFUSION_ISA {

void slice_draw(const Slice& slice, float temperature, const PhiloxKey& key, Draw& best) {
  const double t = static_cast<double>(temperature);
  Buffer buffer;
  const int64_t filled = fill(slice, buffer);
  for (int64_t i = filled; i < (filled + kChunk - 1) / kChunk * kChunk; ++i)
    buffer.at[i] = -INFINITY;
  const int64_t banned = banned_at(slice);
  if (banned >= 0) buffer.at[banned] = -INFINITY;
  const float inverse = temperature > 1e-30f ? 1.0f / temperature : 1e30f;

  alignas(64) uint32_t bits[kChunk];
  for (int64_t g = 0; g < slice.count; g += kChunk) {
    const float* logits = buffer.at + g;
    const float top = chunk_max(logits);
    if (!(top > -INFINITY)) continue;
    random_bits(key, slice.begin + g, bits);
    const auto lead = [&] {
      return best.id < 0 ? -1e30f : static_cast<float>(best.score - top / t) - kMargin;
    };
    if (!any_candidate(logits, bits, kChunk, top, inverse, lead())) continue;
    for (int64_t i = 0; i < kChunk; i += kLanes) {
      if (!any_candidate(logits + i, bits + i, kLanes, top, inverse, lead())) continue;
      for (int64_t k = i; k < i + kLanes; ++k) {
        if (logits[k] == -INFINITY) continue;
        const double limit = best.id < 0 ? 1.0 : std::exp(logits[k] / t - best.score + kMargin);
        if (static_cast<double>(bits[k] >> 1) * 0x1p-31 > limit) continue;
        const double score = gumbel_score(logits[k], temperature, bits[k]);
        if (draw_wins(score, slice.begin + g + k, best)) best = {score, slice.begin + g + k};
      }
    }
  }
}

}  // namespace VLLM_DIFFUSION_ISA
}  // namespace vllm_diffusion
