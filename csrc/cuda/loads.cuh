// A row's logits, eight at a time, whatever the alignment of the row.
//
// Which thread holds which ids must not depend on the row's address: the order of additions, and so
// the rounding, would depend on the row's place in the batch. An unaligned row is therefore read in
// narrower pieces by the same threads.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "common.h"
#include "slice.h"

namespace vllm_diffusion {

constexpr int kVector = 8;
constexpr int kVectors = kSliceIds / (32 * kVector);  // of a lane in a slice

template <Dtype kDtype>
struct Element;
template <>
struct Element<Dtype::kFloat32> {
  using type = float;
};
template <>
struct Element<Dtype::kFloat16> {
  using type = __half;
  using pair = __half2;
};
template <>
struct Element<Dtype::kBFloat16> {
  using type = __nv_bfloat16;
  using pair = __nv_bfloat162;
};

template <Dtype kDtype>
struct Packed {
  using T = typename Element<kDtype>::type;
  alignas(16) T at[kVector];

  __device__ __forceinline__ float operator[](int k) const {
    if constexpr (kDtype == Dtype::kFloat32) {
      return at[k];
    } else if constexpr (kDtype == Dtype::kFloat16) {
      return __half2float(at[k]);
    } else {
      return __bfloat162float(at[k]);
    }
  }

  // Entries k and k + 1 of 16 bits; k is even.
  __device__ __forceinline__ auto pair(int k) const {
    return *reinterpret_cast<const typename Element<kDtype>::pair*>(at + k);
  }
  template <typename Pair>
  __device__ __forceinline__ void set_pair(int k, Pair value) {
    *reinterpret_cast<Pair*>(at + k) = value;
  }

  __device__ __forceinline__ void set(int k, float value) {
    if constexpr (kDtype == Dtype::kFloat32) {
      at[k] = value;
    } else if constexpr (kDtype == Dtype::kFloat16) {
      at[k] = __float2half(value);
    } else {
      at[k] = __float2bfloat16(value);
    }
  }
};

template <typename Piece, typename T>
__device__ __forceinline__ void copy_pieces(T* to, const T* from) {
  constexpr int kPieces = kVector * sizeof(T) / sizeof(Piece);
#pragma unroll
  for (int i = 0; i < kPieces; ++i)
    reinterpret_cast<Piece*>(to)[i] = __ldcs(reinterpret_cast<const Piece*>(from) + i);
}

// How many bytes every vector of the row is aligned to: 16, 8, 4 or 2.
template <typename T>
__device__ __forceinline__ int row_alignment(const T* row) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(row);
  return address % 16 == 0 ? 16 : address % 8 == 0 ? 8 : address % 4 == 0 ? 4 : 2;
}

// Ids [first, first + kVector) of the row; -inf from `vocab` on.
template <Dtype kDtype>
__device__ __forceinline__ Packed<kDtype> load_vector(const typename Element<kDtype>::type* row,
                                                      int64_t first, int64_t vocab, int alignment) {
  using T = typename Element<kDtype>::type;
  Packed<kDtype> out;
  if (first + kVector <= vocab) {
    if (alignment == 16) {
      copy_pieces<uint4, T>(out.at, row + first);
    } else if (alignment == 8) {
      copy_pieces<uint2, T>(out.at, row + first);
    } else if (alignment == 4) {
      copy_pieces<unsigned int, T>(out.at, row + first);
    } else if constexpr (sizeof(T) == 2) {
      copy_pieces<unsigned short, T>(out.at, row + first);
    }
    return out;
  }
#pragma unroll
  for (int k = 0; k < kVector; ++k) {
    if (first + k < vocab) {
      out.at[k] = row[first + k];
    } else {
      out.set(k, -INFINITY);
    }
  }
  return out;
}

// One row. Vector `place` of a slice holds its ids kVector * place ... + 7. The banned id reads as
// -inf.
template <Dtype kDtype>
struct Row {
  using T = typename Element<kDtype>::type;
  const T* logits;
  int32_t vocab;
  int32_t banned;
  int alignment;

  __device__ __forceinline__ int32_t first_id(int32_t slice, int place) const {
    return slice * static_cast<int32_t>(kSliceIds) + place * kVector;
  }

  __device__ __forceinline__ void hide_banned(Packed<kDtype>& vector, int32_t first) const {
    const int32_t at = banned - first;
    if (at < 0 || at >= kVector) return;
#pragma unroll
    for (int k = 0; k < kVector; ++k)
      if (k == at) vector.set(k, -INFINITY);
  }

  __device__ __forceinline__ Packed<kDtype> vector(int32_t slice, int place) const {
    const int32_t first = first_id(slice, place);
    Packed<kDtype> out = load_vector<kDtype>(logits, first, vocab, alignment);
    hide_banned(out, first);
    return out;
  }

  // All of a slice to a warp, vector 32 * j + lane to its lanes. A whole aligned slice takes no
  // branch between its loads.
  __device__ __forceinline__ void load(int32_t slice, Packed<kDtype> (&out)[kVectors]) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (alignment == 16 && (slice + 1) * kSliceIds <= vocab) {
#pragma unroll
      for (int j = 0; j < kVectors; ++j)
        copy_pieces<uint4, T>(out[j].at, logits + first_id(slice, 32 * j + lane));
    } else {
#pragma unroll
      for (int j = 0; j < kVectors; ++j)
        out[j] = load_vector<kDtype>(logits, first_id(slice, 32 * j + lane), vocab, alignment);
    }
    if (banned / kSliceIds == slice) {
#pragma unroll
      for (int j = 0; j < kVectors; ++j) hide_banned(out[j], first_id(slice, 32 * j + lane));
    }
  }

  __device__ __forceinline__ float at(int32_t id) const {
    Packed<kDtype> out;
    out.at[0] = logits[id];
    return out[0];
  }
};

}  // namespace vllm_diffusion
