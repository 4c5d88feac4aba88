// qk_norm_rope_cache: norms and rotates queries and keys in place, stores keys and values in pages.
#pragma once

#include "common.h"

namespace vllm_diffusion {

constexpr int64_t kRopeMaxHead = 256;

// A paged cache, [pages, page_size, kv_heads, head_size]; strides in elements.
struct RopePages {
  void* data;  // nullptr: nothing is stored
  int64_t page_stride, slot_stride, head_stride;
};

struct QkNormRopeCacheArgs {
  Dtype dtype;  // float16 or bfloat16
  void* qkv;    // [rows, (heads + 2 * kv_heads) * head_size], queries, keys, values; written
  int64_t rows, row_stride;
  int heads, kv_heads;
  int head_size;         // a multiple of 4, at most kRopeMaxHead
  int rotary;            // leading elements of a head that are rotated: likewise, at most head_size
  const void* q_weight;  // [head_size]; nullptr: no norm
  const void* k_weight;
  float epsilon;
  const void* cos_sin;       // [max_positions, rotary]: half of them cosines, the others sines
  const int64_t* positions;  // [rows]
  int64_t max_positions;
  RopePages keys, values;
  int page_size;
  int64_t stored;      // entries of `slots`
  int64_t most_slots;  // pages * page_size, below 2^31
  // Whether the cache holds float8_e4m3fn, keys and values as multiples of these; else both null.
  const float* key_scale;
  const float* value_scale;
  // [rows, heads, head_size] float8_e4m3fn: queries as multiples of query_scale, beside those in
  // qkv; nullptr: not wanted.
  void* queries;
  const float* query_scale;
  const int64_t* slots;  // a row outside of [0, most_slots), or behind the last one: not stored
};

// All begin at multiples of 4 bytes, rows and heads too; of 8 bits at multiples of 2. Scales are
// one positive number each, read as weights are. Weights, cos_sin, positions and slots are read
// before the kernels before this one have ended. A row whose position is not in cos_sin is left
// alone. Returns a cudaError_t.
int qk_norm_rope_cache_cuda(const QkNormRopeCacheArgs& args, void* stream);

}  // namespace vllm_diffusion
