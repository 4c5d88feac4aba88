// Counter-based random bits and the Gumbel noise made of them, the same on host and device.
//
// Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC'11).
// The bits of id v in a row with (seed, offset) are word v % 4 of the block with
//   key     = (seed low, seed high)
//   counter = (offset low, offset high, v / 4, 0)
// so they depend on nothing but the row's seed, its offset and the id. A group of ids has bits too,
// likewise, with 1 as the counter's last word; so has a canvas position, whose one word is that of
// group 0.
#pragma once

#include <cmath>
#include <cstdint>

#include "common.h"

namespace vllm_diffusion {

struct PhiloxKey {
  uint32_t seed_low, seed_high, offset_low, offset_high;
};

VLLM_DIFFUSION_HD PhiloxKey philox_key(int64_t seed, int64_t offset) {
  const uint64_t s = static_cast<uint64_t>(seed);
  const uint64_t o = static_cast<uint64_t>(offset);
  return {static_cast<uint32_t>(s), static_cast<uint32_t>(s >> 32), static_cast<uint32_t>(o),
          static_cast<uint32_t>(o >> 32)};
}

constexpr uint32_t kIdStream = 0;
constexpr uint32_t kGroupStream = 1;
constexpr uint32_t kPositionStream = 1;

// Writes the four words of one block to out0 ... out3.
VLLM_DIFFUSION_HD void philox_block(const PhiloxKey& key, uint32_t block, uint32_t& out0,
                                    uint32_t& out1, uint32_t& out2, uint32_t& out3,
                                    uint32_t stream = kIdStream) {
  uint32_t c0 = key.offset_low, c1 = key.offset_high, c2 = block, c3 = stream;
  uint32_t k0 = key.seed_low, k1 = key.seed_high;
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = static_cast<uint64_t>(c0) * 0xD2511F53u;
    const uint64_t b = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(b);
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  out0 = c0;
  out1 = c1;
  out2 = c2;
  out3 = c3;
}

// The bits of the `index`-th id or group.
VLLM_DIFFUSION_HD uint32_t philox_word(const PhiloxKey& key, int64_t index, uint32_t stream) {
  uint32_t w0, w1, w2, w3;
  philox_block(key, static_cast<uint32_t>(index / 4), w0, w1, w2, w3, stream);
  const int64_t word = index % 4;
  return word == 0 ? w0 : word == 1 ? w1 : word == 2 ? w2 : w3;
}

// Gumbel noise of 32 random bits, in float64: u = (bits + 1/2) / 2^32 lies strictly inside (0, 1),
// and 1 - u stands for the uniform of the usual formula, so that the upper tail, the one an argmax
// looks at, keeps its resolution.
VLLM_DIFFUSION_HD double gumbel(uint32_t bits) {
  const double u = (static_cast<double>(bits) + 0.5) * 0x1p-32;
  return -log(-log1p(-u));
}

// What the Gumbel-max draw maximises: logit / temperature + noise.
VLLM_DIFFUSION_HD double gumbel_score(float logit, float temperature, uint32_t bits) {
  return static_cast<double>(logit) / static_cast<double>(temperature) + gumbel(bits);
}

struct Draw {
  double score;
  int64_t id;  // -1: nothing drawn yet
};

// Whether (score, id) comes before `best`: higher score, then lower id.
VLLM_DIFFUSION_HD bool draw_wins(double score, int64_t id, const Draw& best) {
  return best.id < 0 || score > best.score || (score == best.score && id < best.id);
}

}  // namespace vllm_diffusion
