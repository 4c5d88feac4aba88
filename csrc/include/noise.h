// noise: a random number for every position of the requests' canvases. The Python wrapper
// (vllm/v1/diffusion/kernels/noise.py) documents the meaning.
#pragma once

#include <cstdint>

#include "philox.h"

namespace vllm_diffusion {

// A matrix of any strides, in elements: a vector of requests is one whose columns are 0 apart.
template <typename T>
struct Strided {
  const T* data;
  int64_t row_stride, column_stride;

  VLLM_DIFFUSION_HD_MEMBER T at(int64_t row, int64_t column) const {
    return data[row * row_stride + column * column_stride];
  }
};

struct NoiseArgs {
  Strided<int64_t> seed;  // [rows, columns], as all of them
  Strided<int64_t> position;
  Strided<int32_t> step;
  int64_t rows, columns;
  int step_bits;  // low bits of the counter that the step takes; the position is above them
  bool gumbel;    // Gumbel noise, else the uniform number
  double* out;    // contiguous
};

VLLM_DIFFUSION_HD double noise_at(const NoiseArgs& args, int64_t row, int64_t column) {
  // Shifted without a sign: a position is never negative, but nothing here is undefined if one is.
  const uint64_t position = static_cast<uint64_t>(args.position.at(row, column));
  const uint64_t offset =
      (position << args.step_bits) + static_cast<uint64_t>(args.step.at(row, column));
  const PhiloxKey key = philox_key(args.seed.at(row, column), static_cast<int64_t>(offset));
  const double u = (static_cast<double>(philox_word(key, 0, kPositionStream)) + 0.5) * 0x1p-32;
  return args.gumbel ? -log(-log(u)) : u;
}

void noise_cpu(const NoiseArgs& args, const Parallel& parallel);

// `stream` is a cudaStream_t; returns a cudaError_t. Allocates nothing and does not synchronise.
int noise_cuda(const NoiseArgs& args, void* stream);

}  // namespace vllm_diffusion
