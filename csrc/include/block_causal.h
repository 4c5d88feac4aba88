// Block-causal attention over a paged KV cache. The Python wrapper
// (vllm/v1/diffusion/kernels/block_causal.py) documents the meaning.
#pragma once

#include <cmath>
#include <cstdint>

#include "common.h"

namespace vllm_diffusion {

constexpr int64_t kMaxHeadSize = 256;

// Strides count elements; the entries of a head are contiguous.
struct BlockCausalArgs {
  Dtype dtype;        // of query, key, value and out
  const void* query;  // [tokens, heads, head_size]
  int64_t query_token_stride, query_head_stride;
  const void* key;  // [pages, page_size, kv_heads, head_size]
  int64_t key_page_stride, key_token_stride, key_head_stride;
  const void* value;  // as key
  int64_t value_page_stride, value_token_stride, value_head_stride;
  const int32_t* block_table;  // [requests, table_width], rows table_stride apart
  int64_t table_stride, table_width;
  const int32_t* query_start;   // [requests + 1]
  const int32_t* seq_lens;      // [requests]
  const int32_t* block_length;  // [requests]
  void* out;                    // [tokens, heads, head_size]
  int64_t out_token_stride, out_head_stride;
  int64_t tokens, requests, heads, kv_heads, head_size, pages, page_size;
  float scale;
};

// Keys that the query at `position` sees: [0, end). Never more than are computed.
VLLM_DIFFUSION_HD int32_t block_end(int32_t position, int32_t block_length, int32_t seq_len) {
  if (position < 0) return 0;
  const int32_t length = block_length > 1 ? block_length : 1;
  const int64_t end = (static_cast<int64_t>(position / length) + 1) * length;
  return end < seq_len ? static_cast<int32_t>(end) : seq_len;
}

// A sentence about the first invalid entry of query_start, seq_lens, block_length or the block
// table, or null. Host memory only.
const char* block_causal_problem(const BlockCausalArgs& args);

void block_causal_cpu(const BlockCausalArgs& args, const Parallel& parallel);

// `stream` is a cudaStream_t; returns a cudaError_t, allocates nothing and does not synchronise.
// A page out of range is read as zeros, a request whose rows are out of range is left alone.
int block_causal_attention_cuda(const BlockCausalArgs& args, void* stream);

}  // namespace vllm_diffusion
