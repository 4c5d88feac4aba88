// Vectors of the width the translation unit is compiled for, in compiler vector extensions.
//
// Every reduction runs in kLanes independent lanes whatever the width, so that the order of
// additions, and with it the rounding, does not change with the instruction set (a machine with
// fused multiply-add still rounds once less). Everything is static: see common.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "kernels.h"

namespace vllm_diffusion {
namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
constexpr int kLanes = 32;
constexpr int kParts = kLanes / kWidth;

typedef float VecF __attribute__((vector_size(kWidth * 4)));
typedef int32_t VecI __attribute__((vector_size(kWidth * 4)));
typedef uint32_t VecU __attribute__((vector_size(kWidth * 4)));
typedef uint16_t VecH __attribute__((vector_size(kWidth * 2)));

static inline VecF splat(float value) {
  return VecF{} + value;
}

static inline VecF load(const float* from) {
  VecF out;
  std::memcpy(&out, from, sizeof(out));
  return out;
}

static inline VecF bits_to_float(VecU bits) {
  VecF out;
  std::memcpy(&out, &bits, sizeof(out));
  return out;
}

static inline VecU float_to_bits(VecF value) {
  VecU out;
  std::memcpy(&out, &value, sizeof(out));
  return out;
}

// The larger of the two in each lane; `a` where `b` is NaN.
static inline VecF larger(VecF a, VecF b) {
  return b > a ? b : a;
}
static inline VecF smaller(VecF a, VecF b) {
  return b < a ? b : a;
}

// The lowest argument of `exp_nonpositive`; e^x is 1.6e-38 there, nothing beside a sum of 1 or
// more.
constexpr float kExpFloor = -87.0f;

// x, or kExpFloor where x is lower (-inf too); NaN stays NaN.
static inline VecF exp_clamp(VecF x) {
  const VecF floor = splat(kExpFloor);
  return x < floor ? floor : x;
}

// e^x for kExpFloor <= x <= 0 within 1.4 ulp (every fifth float tried); NaN stays NaN. Reduction to
// |r| <= ln(2)/2 and a degree 6 minimax polynomial (1.9e-9).
static inline VecF exp_nonpositive(VecF x) {
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits; 127 is the exponent bias.
  const VecF shifted = x * 0x1.715476p+0f + (0x1.8p23f + 127.0f);
  const VecF n = shifted - (0x1.8p23f + 127.0f);
  const VecF r = (x - n * 0x1.62e400p-1f) - n * 0x1.7f7d1cp-20f;
  VecF p = splat(0x1.6ab980p-10f);
  p = p * r + 0x1.126d0cp-7f;
  p = p * r + 0x1.55589ap-5f;
  p = p * r + 0x1.55540ap-3f;
  p = p * r + 0x1.fffffap-2f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * bits_to_float(float_to_bits(shifted) << 23);
}

static inline VecF half_to_float(VecH half) {
#if defined(__AVX512F__)
  __m256i raw;
  std::memcpy(&raw, &half, sizeof(raw));
  return (VecF)_mm512_maskz_cvtph_ps(0xffff, raw);
#elif defined(__F16C__)
  __m128i raw;
  std::memcpy(&raw, &half, sizeof(raw));
  return (VecF)_mm256_cvtph_ps(raw);
#else
  const VecU wide = __builtin_convertvector(half, VecU);
  const VecU sign = (wide & 0x8000u) << 16;
  const VecU body = (wide & 0x7fffu) << 13;
  // Moving the exponent by a multiplication turns half's subnormals into floats exactly.
  const VecU finite = float_to_bits(bits_to_float(body) * 0x1p112f);
  const VecU special = body | 0x7f800000u;
  return bits_to_float((body >= 0x0f800000u ? special : finite) | sign);
#endif
}

static inline VecF bfloat_to_float(VecH half) {
  return bits_to_float(__builtin_convertvector(half, VecU) << 16);
}

template <Dtype kDtype>
static inline VecF load_as_float(const void* row, int64_t at) {
  if constexpr (kDtype == Dtype::kFloat32) {
    return load(static_cast<const float*>(row) + at);
  } else {
    VecH half;
    std::memcpy(&half, static_cast<const uint16_t*>(row) + at, sizeof(half));
    return kDtype == Dtype::kBFloat16 ? bfloat_to_float(half) : half_to_float(half);
  }
}

// A slice in float32, padded with -inf to whole groups of kLanes.
struct Buffer {
  alignas(64) float at[kSliceIds];
};

template <Dtype kDtype>
static int64_t fill_as(const Slice& slice, Buffer& buffer) {
  constexpr int64_t size = kDtype == Dtype::kFloat32 ? 4 : 2;
  int64_t i = 0;
  for (; i + kWidth <= slice.count; i += kWidth) {
    const VecF value = load_as_float<kDtype>(slice.row, slice.begin + i);
    std::memcpy(buffer.at + i, &value, sizeof(value));
  }
  if (i < slice.count) {
    alignas(64) unsigned char rest[kWidth * size] = {};
    std::memcpy(rest, static_cast<const char*>(slice.row) + (slice.begin + i) * size,
                static_cast<size_t>((slice.count - i) * size));
    const VecF value = load_as_float<kDtype>(rest, 0);
    std::memcpy(buffer.at + i, &value, sizeof(value));
  }
  const int64_t padded = (slice.count + kLanes - 1) / kLanes * kLanes;
  for (int64_t k = slice.count; k < padded; ++k) buffer.at[k] = -INFINITY;
  return padded;
}

// Fills `buffer` and returns its padded length.
[[maybe_unused]] static int64_t fill(const Slice& slice, Buffer& buffer) {
  switch (slice.dtype) {
    case Dtype::kFloat32:
      return fill_as<Dtype::kFloat32>(slice, buffer);
    case Dtype::kFloat16:
      return fill_as<Dtype::kFloat16>(slice, buffer);
    default:
      return fill_as<Dtype::kBFloat16>(slice, buffer);
  }
}

// Index of the banned id in the slice, or -1.
static inline int64_t banned_at(const Slice& slice) {
  const int64_t i = slice.banned - slice.begin;
  return slice.banned >= 0 && i >= 0 && i < slice.count ? i : -1;
}

}  // namespace
}  // namespace vllm_diffusion
