// Block-causal attention of a tile of rows: online softmax over kAttendKeys keys at a time, all in
// float32.
#include "vec.h"

namespace vllm_diffusion {
namespace {

static_assert(kAttendKeys == kLanes);

template <Dtype kDtype>
static void widen(const void* from, int64_t count, float* out) {
  constexpr int64_t size = kDtype == Dtype::kFloat32 ? 4 : 2;
  for (int64_t i = 0; i < count; i += kWidth) {
    VecF value;
    if (i + kWidth <= count) {
      value = load_as_float<kDtype>(from, i);
    } else {
      alignas(64) unsigned char rest[kWidth * size] = {};
      std::memcpy(rest, static_cast<const char*>(from) + i * size,
                  static_cast<size_t>((count - i) * size));
      value = load_as_float<kDtype>(rest, 0);
    }
    std::memcpy(out + i, &value, sizeof(value));
  }
}

// Round to nearest even.
template <Dtype kDtype>
static void narrow(float value, void* out, int64_t at) {
  if constexpr (kDtype == Dtype::kFloat32) {
    static_cast<float*>(out)[at] = value;
    return;
  }
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  uint16_t half;
  const uint32_t size = bits & 0x7fffffffu;
  if constexpr (kDtype == Dtype::kBFloat16) {
    half = size > 0x7f800000u ? 0x7fc0
                              : static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
  } else {
    uint32_t body;
    if (size > 0x7f800000u) {
      body = 0x7e00;  // NaN
    } else if (size >= 0x477ff000u) {
      body = 0x7c00;  // rounds to infinity
    } else if (size < 0x38800000u) {
      // Subnormal: beside 0.5, a float's last bit is half's, 2^-24.
      const float shifted = std::fabs(value) + 0.5f;
      std::memcpy(&body, &shifted, sizeof(body));
      body -= 0x3f000000u;
    } else {
      body = (size - 0x38000000u + 0xfffu + (size >> 13 & 1)) >> 13;
    }
    half = static_cast<uint16_t>(body | (bits >> 16 & 0x8000u));
  }
  static_cast<uint16_t*>(out)[at] = half;
}

template <Dtype kDtype>
class Tile {
 public:
  Tile(const BlockCausalArgs& args, const AttendTile& tile)
      : args_(args), tile_(tile), padded_((args.head_size + kWidth - 1) / kWidth * kWidth) {}

  void run() {
    int64_t end = 0;
    for (int64_t r = 0; r < tile_.count; ++r) {
      start_row(r);
      end = end_[r] > end ? end_[r] : end;
    }
    for (int64_t n = 0; n < end; n += kAttendKeys) {
      fetch(n, end);
      for (int64_t r = 0; r < tile_.count; ++r) {
        const int64_t keys = end_[r] < n + kAttendKeys ? end_[r] - n : kAttendKeys;
        if (keys > 0) add_keys(r, keys);
      }
    }
    for (int64_t r = 0; r < tile_.count; ++r) finish_row(r);
  }

 private:
  static constexpr int64_t kSize = kDtype == Dtype::kFloat32 ? 4 : 2;

  int64_t group() const { return args_.heads / args_.kv_heads; }
  int64_t token(int64_t r) const {
    return args_.query_start[tile_.request] + (tile_.first + r) / group();
  }
  int64_t head(int64_t r) const { return tile_.kv_head * group() + (tile_.first + r) % group(); }
  char* out(int64_t r) const {
    return static_cast<char*>(args_.out) +
           (token(r) * args_.out_token_stride + head(r) * args_.out_head_stride) * kSize;
  }

  void start_row(int64_t r) {
    const int32_t seq_len = args_.seq_lens[tile_.request];
    const int64_t position = seq_len - args_.query_start[tile_.request + 1] + token(r);
    end_[r] = block_end(static_cast<int32_t>(position), args_.block_length[tile_.request], seq_len);
    max_[r] = -INFINITY;
    sum_[r] = 0.0f;
    std::memset(sums_[r], 0, sizeof(sums_[r]));
    if (end_[r] <= 0) return;
    std::memset(query_[r], 0, sizeof(query_[r]));
    const char* query = static_cast<const char*>(args_.query);
    widen<kDtype>(
        query + (token(r) * args_.query_token_stride + head(r) * args_.query_head_stride) * kSize,
        args_.head_size, query_[r]);
    for (int64_t d = 0; d < args_.head_size; ++d) query_[r][d] *= args_.scale;
  }

  // Keys and values [first, first + kAttendKeys), zeros from `end` on; the keys transposed.
  void fetch(int64_t first, int64_t end) {
    alignas(64) float row[kMaxHeadSize];
    const int32_t* table = args_.block_table + tile_.request * args_.table_stride;
    for (int64_t j = 0; j < kAttendKeys; ++j) {
      std::memset(values_[j], 0, sizeof(float) * static_cast<size_t>(padded_));
      std::memset(row, 0, sizeof(row));
      if (first + j < end) {
        const int64_t page = table[(first + j) / args_.page_size];
        const int64_t slot = (first + j) % args_.page_size;
        widen<kDtype>(static_cast<const char*>(args_.key) +
                          (page * args_.key_page_stride + slot * args_.key_token_stride +
                           tile_.kv_head * args_.key_head_stride) *
                              kSize,
                      args_.head_size, row);
        widen<kDtype>(static_cast<const char*>(args_.value) +
                          (page * args_.value_page_stride + slot * args_.value_token_stride +
                           tile_.kv_head * args_.value_head_stride) *
                              kSize,
                      args_.head_size, values_[j]);
      }
      for (int64_t d = 0; d < args_.head_size; ++d) keys_[d][j] = row[d];
    }
  }

  // Adds the first `keys` of those fetched to row `r`.
  void add_keys(int64_t r, int64_t keys) {
    VecF score[kParts] = {};
    for (int64_t d = 0; d < args_.head_size; ++d)
      for (int p = 0; p < kParts; ++p) score[p] += query_[r][d] * load(&keys_[d][p * kWidth]);
    alignas(64) float weight[kAttendKeys];
    std::memcpy(weight, score, sizeof(weight));
    float top = max_[r];
    for (int64_t j = 0; j < keys; ++j) top = weight[j] > top ? weight[j] : top;
    if (top == -INFINITY) return;
    for (int p = 0; p < kParts; ++p) {
      const VecF e = exp_nonpositive(exp_clamp(score[p] - top));
      std::memcpy(weight + p * kWidth, &e, sizeof(e));
    }
    const float keep = max_[r] == -INFINITY ? 0.0f : std::exp(max_[r] - top);
    float sum = 0.0f;
    for (int64_t j = 0; j < keys; ++j) sum += weight[j];
    sum_[r] = sum_[r] * keep + sum;
    max_[r] = top;
    for (int64_t d = 0; d < padded_; d += kWidth) {
      VecF all = load(sums_[r] + d) * keep;
      for (int64_t j = 0; j < keys; ++j) all += weight[j] * load(values_[j] + d);
      std::memcpy(sums_[r] + d, &all, sizeof(all));
    }
  }

  void finish_row(int64_t r) {
    const float inverse = sum_[r] == 0.0f ? 0.0f : 1.0f / sum_[r];
    char* to = out(r);
    for (int64_t d = 0; d < args_.head_size; ++d) narrow<kDtype>(sums_[r][d] * inverse, to, d);
  }

  const BlockCausalArgs& args_;
  const AttendTile& tile_;
  const int64_t padded_;
  int64_t end_[kAttendRows];
  float max_[kAttendRows], sum_[kAttendRows];
  alignas(64) float query_[kAttendRows][kMaxHeadSize];
  alignas(64) float sums_[kAttendRows][kMaxHeadSize];
  alignas(64) float keys_[kMaxHeadSize][kAttendKeys];
  alignas(64) float values_[kAttendKeys][kMaxHeadSize];
};

}  // namespace

namespace VLLM_DIFFUSION_ISA {

void attend(const BlockCausalArgs& args, const AttendTile& tile) {
  switch (args.dtype) {
    case Dtype::kFloat32:
      return Tile<Dtype::kFloat32>(args, tile).run();
    case Dtype::kFloat16:
      return Tile<Dtype::kFloat16>(args, tile).run();
    case Dtype::kBFloat16:
      return Tile<Dtype::kBFloat16>(args, tile).run();
  }
}

}  // namespace VLLM_DIFFUSION_ISA
}  // namespace vllm_diffusion
