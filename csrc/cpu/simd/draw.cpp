// Gumbel-max draw over one slice.
//
// The exact score (float64, two logarithms) is computed for a handful of ids only. Since
// gumbel(u) <= -log(u), an id can beat the best score so far only if u <= e^(l / T - best): one
// exponential and one comparison, with a margin for its rounding, set all others aside.
#include "vec.h"

namespace vllm_diffusion {
namespace {

constexpr int64_t kGroup = 256;  // ids looked at together; a multiple of kLanes and of 4
constexpr float kMargin = 1e-3f;

static void random_bits(const PhiloxKey& key, int64_t first_id, uint32_t* bits) {
  const uint32_t first = static_cast<uint32_t>(first_id / 4);
  for (uint32_t q = 0; q < kGroup / 4; ++q)
    philox_block(key, first + q, bits[4 * q], bits[4 * q + 1], bits[4 * q + 2], bits[4 * q + 3]);
}

static float group_max(const float* buffer) {
  VecF top[kParts];
  for (int p = 0; p < kParts; ++p) top[p] = load(buffer + p * kWidth);
  for (int64_t i = kLanes; i < kGroup; i += kLanes)
    for (int p = 0; p < kParts; ++p) top[p] = larger(top[p], load(buffer + i + p * kWidth));
  float out = -INFINITY;
  for (int p = 0; p < kParts; ++p)
    for (int k = 0; k < kWidth; ++k) out = top[p][k] > out ? top[p][k] : out;
  return out;
}

// Whether any of kLanes ids may beat a best score that lies `lead` above top / T.
static bool any_candidate(const float* logits, const uint32_t* bits, float top, float inverse,
                          float lead) {
  VecI hit = {};
  for (int p = 0; p < kParts; ++p) {
    VecF x = (load(logits + p * kWidth) - top) * inverse - lead;
    x = x > 0.0f ? VecF{} : x;
    VecU word;
    std::memcpy(&word, bits + p * kWidth, sizeof(word));
    VecI half = (VecI)(word >> 1);  // 31 bits: signed conversion is one instruction everywhere
    const VecF u = __builtin_convertvector(half, VecF) * 0x1p-31f;
    hit |= u <= exp_nonpositive(x);
  }
  int32_t any = 0;
  for (int k = 0; k < kWidth; ++k) any |= hit[k];
  return any != 0;
}

}  // namespace

namespace VLLM_DIFFUSION_ISA {

void slice_draw(const Slice& slice, float temperature, const PhiloxKey& key, float max1,
                Draw& best) {
  const double t = static_cast<double>(temperature);
  // Where nothing in sight can reach the best score, not even the bits are drawn.
  const auto hopeless = [&](float top) {
    return !(top > -INFINITY) ||
           (best.id >= 0 && static_cast<double>(top) / t + kGumbelMax < best.score);
  };
  if (hopeless(max1)) return;

  Buffer buffer;
  const int64_t filled = fill(slice, buffer);
  for (int64_t i = filled; i < (filled + kGroup - 1) / kGroup * kGroup; ++i)
    buffer.at[i] = -INFINITY;
  const int64_t banned = banned_at(slice);
  if (banned >= 0) buffer.at[banned] = -INFINITY;
  const float inverse = temperature > 1e-30f ? 1.0f / temperature : 1e30f;

  alignas(64) uint32_t bits[kGroup];
  for (int64_t g = 0; g < slice.count; g += kGroup) {
    const float* logits = buffer.at + g;
    const float top = group_max(logits);
    if (hopeless(top)) continue;
    random_bits(key, slice.begin + g, bits);
    for (int64_t i = 0; i < kGroup; i += kLanes) {
      const float lead = best.id < 0 ? -1e30f : static_cast<float>(best.score - top / t) - kMargin;
      if (!any_candidate(logits + i, bits + i, top, inverse, lead)) continue;
      for (int64_t k = i; k < i + kLanes; ++k) {
        if (logits[k] == -INFINITY) continue;
        const float limit = best.id < 0 ? 1.0f : static_cast<float>(
            std::exp(static_cast<double>(logits[k]) / t - best.score + kMargin));
        if (static_cast<float>(bits[k] >> 1) * 0x1p-31f > limit) continue;
        const double score = gumbel_score(logits[k], temperature, bits[k]);
        if (draw_wins(score, slice.begin + g + k, best)) best = {score, slice.begin + g + k};
      }
    }
  }
}

}  // namespace VLLM_DIFFUSION_ISA
}  // namespace vllm_diffusion
