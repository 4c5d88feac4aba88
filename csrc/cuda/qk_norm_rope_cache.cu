// qk_norm_rope_cache on CUDA: a warp a head of a row. A lane holds pairs of neighbours, and the
// pairs with which they are rotated, half of the rotated elements further. Elements behind those
// that are rotated are held in twos likewise.
#include "qk_norm_rope_cache.h"

#include <cuda_runtime.h>

#include "cuda/eight_bits.cuh"
#include "cuda/launch.cuh"
#include "cuda/mma.cuh"

namespace vllm_diffusion {
namespace {

constexpr int kWarps = 4;
constexpr int kPairs = kRopeMaxHead / 2 / 64;  // of a lane, in each half

template <Dtype kDtype>
__device__ __forceinline__ float2 pair_at(const void* from, int64_t element) {
  const auto* words = static_cast<const uint32_t*>(from);
  return unpack<kDtype>(words[element / 2]);
}

template <Dtype kDtype>
__device__ __forceinline__ void put(void* to, int64_t element, float2 pair) {
  static_cast<uint32_t*>(to)[element / 2] = pack<kDtype>(pair.x, pair.y);
}

// Two numbers as float8_e4m3fn: rounded to 16 bits first, as they are where they are kept in those.
template <Dtype kDtype>
__device__ __forceinline__ void put_eight(void* to, int64_t element, float2 pair,
                                          const Quotient& quotient) {
  const float2 x = unpack<kDtype>(pack<kDtype>(pair.x, pair.y));
  static_cast<uint16_t*>(to)[element / 2] = pack_e4m3(quotient.of(x.x), quotient.of(x.y));
}

__device__ __forceinline__ float2 times(float2 a, float2 b) {
  return make_float2(a.x * b.x, a.y * b.y);
}

// kEight: whether the cache holds 8 bits.
template <Dtype kDtype, bool kEight>
__global__ void __launch_bounds__(kWarps * 32) qk_norm_rope_cache_kernel(QkNormRopeCacheArgs args) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int head = static_cast<int>(blockIdx.y) * kWarps + static_cast<int>(threadIdx.x) / 32;
  const int64_t row = blockIdx.x;
  const bool is_query = head < args.heads;
  const bool is_value = head >= args.heads + args.kv_heads;
  if (head >= args.heads + 2 * args.kv_heads) return;
  const int64_t position = args.positions[row];
  if (position < 0 || position >= args.max_positions) return;
  const int half = args.head_size / 2, rotated = args.rotary / 2;
  // Where the `at`-th element of the lanes' first pairs lies in a head, and its partner.
  const auto low_of = [rotated](int at) { return at < rotated ? at : rotated + at; };
  const auto high_of = [half, rotated](int at) { return at + (at < rotated ? rotated : half); };
  const void* weight = is_value ? nullptr : is_query ? args.q_weight : args.k_weight;
  int64_t slot = -1;
  if (!is_query && row < args.stored) slot = args.slots[row];
  float2 low[kPairs], high[kPairs], cosine[kPairs], sine[kPairs];
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int at = 2 * (lane + 32 * i);
    low[i] = high[i] = make_float2(1.0f, 1.0f);
    if (at >= half || is_value) continue;
    if (at < rotated) {
      cosine[i] = pair_at<kDtype>(args.cos_sin, position * args.rotary + at);
      sine[i] = pair_at<kDtype>(args.cos_sin, position * args.rotary + rotated + at);
    }
    if (weight == nullptr) continue;
    low[i] = pair_at<kDtype>(weight, low_of(at));
    high[i] = pair_at<kDtype>(weight, high_of(at));
  }
  const float* kept_scale = is_query   ? args.query_scale
                            : is_value ? args.value_scale
                                       : args.key_scale;
  const Quotient kept(kEight && kept_scale != nullptr ? *kept_scale : 1.0f);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
  const int64_t begin = row * args.row_stride + static_cast<int64_t>(head) * args.head_size;
  float square = 0.0f;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int at = 2 * (lane + 32 * i);
    if (at >= half) continue;
    const float2 x = pair_at<kDtype>(args.qkv, begin + low_of(at));
    const float2 y = pair_at<kDtype>(args.qkv, begin + high_of(at));
    square += x.x * x.x + x.y * x.y + y.x * y.x + y.y * y.y;
    low[i] = times(low[i], x);
    high[i] = times(high[i], y);
  }
  float scale = 1.0f;
  if (weight != nullptr) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2)
      square += __shfl_xor_sync(0xffffffffu, square, lanes);
    scale = rsqrtf(square / static_cast<float>(args.head_size) + args.epsilon);
  }
  const RopePages& pages = is_value ? args.values : args.keys;
  const bool stores = slot >= 0 && slot < args.most_slots;
  const int page = stores ? static_cast<int>(slot) / args.page_size : 0;
  const int64_t in_page = stores ? static_cast<int>(slot) - page * args.page_size : 0;
  const int kv_head = head - args.heads - (is_value ? args.kv_heads : 0);
  const int64_t query = (row * args.heads + head) * args.head_size;
  const int64_t stored = page * pages.page_stride + in_page * pages.slot_stride +
                         static_cast<int64_t>(kv_head) * pages.head_stride;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int at = 2 * (lane + 32 * i);
    if (at >= half) continue;
    if (!is_value) {
      const float2 x = times(low[i], make_float2(scale, scale));
      const float2 y = times(high[i], make_float2(scale, scale));
      low[i] = x;
      high[i] = y;
      if (at < rotated) {
        const float2 c = cosine[i], s = sine[i];
        low[i] = make_float2(x.x * c.x - y.x * s.x, x.y * c.y - y.y * s.y);
        high[i] = make_float2(y.x * c.x + x.x * s.x, y.y * c.y + x.y * s.y);
      }
      put<kDtype>(args.qkv, begin + low_of(at), low[i]);
      put<kDtype>(args.qkv, begin + high_of(at), high[i]);
    }
    if constexpr (kEight) {
      if (is_query ? args.queries == nullptr : !stores) continue;
      void* to = is_query ? args.queries : pages.data;
      const int64_t from = is_query ? query : stored;
      put_eight<kDtype>(to, from + low_of(at), low[i], kept);
      put_eight<kDtype>(to, from + high_of(at), high[i], kept);
    } else {
      if (!stores) continue;
      put<kDtype>(pages.data, stored + low_of(at), low[i]);
      put<kDtype>(pages.data, stored + high_of(at), high[i]);
    }
  }
}

template <Dtype kDtype>
auto kernel_for(const QkNormRopeCacheArgs& args) {
  return args.key_scale == nullptr ? qk_norm_rope_cache_kernel<kDtype, false>
                                   : qk_norm_rope_cache_kernel<kDtype, true>;
}

}  // namespace

int qk_norm_rope_cache_cuda(const QkNormRopeCacheArgs& args, void* stream) {
  const auto kernel = args.dtype == Dtype::kBFloat16 ? kernel_for<Dtype::kBFloat16>(args)
                                                     : kernel_for<Dtype::kFloat16>(args);
  const unsigned heads = static_cast<unsigned>(args.heads + 2 * args.kv_heads);
  const dim3 blocks(static_cast<unsigned>(args.rows), (heads + kWarps - 1) / kWarps);
  return launch_close_behind(kernel, blocks, kWarps * 32, 0, static_cast<cudaStream_t>(stream),
                             args);
}

}  // namespace vllm_diffusion
