// Softmax sums and the two highest logits of one slice.
#include "vec.h"

namespace vllm_diffusion {
namespace {

// Ids summed before their sum joins the slice's: short chains of additions round less.
constexpr int64_t kRun = 16 * kLanes;

struct Top {
  float first, second;
};

// The two highest values of buffer[0, count), equal ones counted as often as they occur.
static Top top_two(const float* buffer, int64_t count) {
  VecF first[kParts], second[kParts];
  for (int p = 0; p < kParts; ++p) first[p] = second[p] = splat(-INFINITY);
  for (int64_t i = 0; i < count; i += kLanes) {
    for (int p = 0; p < kParts; ++p) {
      const VecF x = load(buffer + i + p * kWidth);
      second[p] = larger(second[p], smaller(first[p], x));
      first[p] = larger(first[p], x);
    }
  }
  Top out = {-INFINITY, -INFINITY};
  for (int p = 0; p < kParts; ++p) {
    for (int k = 0; k < kWidth; ++k) {
      const float a = first[p][k], b = second[p][k];
      const float low = a > out.first ? out.first : a;
      out.first = a > out.first ? a : out.first;
      if (low > out.second) out.second = low;
      if (b > out.second) out.second = b;
    }
  }
  return out;
}

static bool any_nan(const float* buffer, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (buffer[i] != buffer[i]) return true;
  return false;
}

struct Exponentials {
  double plain;     // sum of e^x, x = (l - base) * scale
  double weighted;  // sum of x e^x
};

static Exponentials exponentials(const float* buffer, int64_t count, float base, float scale) {
  VecF z[kParts] = {}, s[kParts] = {};
  for (int64_t first = 0; first < count; first += kRun) {
    const int64_t end = first + kRun < count ? first + kRun : count;
    VecF run_z[kParts] = {}, run_s[kParts] = {};
    for (int64_t i = first; i < end; i += kLanes) {
      for (int p = 0; p < kParts; ++p) {
        const VecF x = exp_clamp((load(buffer + i + p * kWidth) - base) * scale);
        const VecF e = exp_nonpositive(x);
        run_z[p] += e;
        run_s[p] += e * x;
      }
    }
    for (int p = 0; p < kParts; ++p) {
      z[p] += run_z[p];
      s[p] += run_s[p];
    }
  }
  Exponentials out = {0.0, 0.0};
  for (int p = 0; p < kParts; ++p) {
    for (int k = 0; k < kWidth; ++k) {
      out.plain += static_cast<double>(z[p][k]);
      out.weighted += static_cast<double>(s[p][k]);
    }
  }
  return out;
}

}  // namespace

namespace VLLM_DIFFUSION_ISA {

SliceStats slice_stats(const Slice& slice, float scale, float draw_scale) {
  Buffer buffer;
  const int64_t count = fill(slice, buffer);
  const int64_t banned = banned_at(slice);
  float banned_logit = -INFINITY;
  if (banned >= 0) {
    banned_logit = buffer.at[banned];
    buffer.at[banned] = -INFINITY;
  }
  const Top top = top_two(buffer.at, count);
  SliceStats out = empty_slice();
  out.max1 = top.first;
  out.max2 = top.second;
  out.max_all = banned_logit > top.first ? banned_logit : top.first;
  const bool draws = draw_scale > 0.0f && out.max1 > -INFINITY;
  const bool shared = draw_scale == scale && !(banned_logit > -INFINITY);
  if (draws && !shared)
    out.mass = static_cast<float>(exponentials(buffer.at, count, out.max1, draw_scale).plain);
  if (banned >= 0) buffer.at[banned] = banned_logit;
  if (out.max_all == -INFINITY) {
    if (any_nan(buffer.at, count)) out.z = NAN;
    return out;
  }
  const Exponentials sums = exponentials(buffer.at, count, out.max_all, scale);
  out.z = sums.plain;
  out.s = sums.weighted;
  if (draws && shared) out.mass = static_cast<float>(sums.plain);
  return out;
}

double slice_mass(const Slice& slice, float temperature, float max1) {
  Buffer buffer;
  fill(slice, buffer);
  const int64_t banned = banned_at(slice);
  double out = 0.0;
  for (int64_t i = 0; i < slice.count; ++i) {
    if (i == banned || buffer.at[i] == -INFINITY) continue;
    out += std::exp((static_cast<double>(buffer.at[i]) - max1) / temperature);
  }
  return out;
}

int64_t slice_find(const Slice& slice, float value) {
  Buffer buffer;
  fill(slice, buffer);
  const int64_t banned = banned_at(slice);
  for (int64_t i = 0; i < slice.count; ++i)
    if (buffer.at[i] == value && i != banned) return slice.begin + i;
  return -1;
}

}  // namespace VLLM_DIFFUSION_ISA
}  // namespace vllm_diffusion
