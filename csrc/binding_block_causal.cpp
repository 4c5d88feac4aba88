// torch.ops.vllm_diffusion.block_causal_attention: checks, device guard, stream, registration.
#include "binding.h"
#include "binding_cuda.h"
#include "block_causal.h"

namespace vllm_diffusion {
namespace {

Dtype attention_dtype(const Tensor& query) {
  const Dtype dtype = float_dtype(query, "query");
  STD_TORCH_CHECK(dtype != Dtype::kFloat32 || !query.is_cuda(),
                  "query must be float16 or bfloat16 on CUDA");
  return dtype;
}

// A tensor of `query`'s dtype and device whose heads are contiguous and, on CUDA, can be read 16
// bytes at a time.
void check_heads(const Tensor& tensor, const char* name, int64_t dims, const Tensor& query) {
  check_device(tensor, name, query, "query");
  STD_TORCH_CHECK(tensor.scalar_type() == query.scalar_type(), name, " must have query's dtype");
  STD_TORCH_CHECK(tensor.dim() == dims, name, " must have ", dims, " dimensions");
  const int64_t last = dims - 1;
  STD_TORCH_CHECK(tensor.size(last) == query.size(2), name, " must have query's head size");
  STD_TORCH_CHECK(tensor.stride(last) == 1, name, ": the entries of a head must be contiguous");
  if (!query.is_cuda()) return;
  bool aligned = begins_at(tensor, 16);
  for (int64_t d = 0; d < last; ++d) aligned &= tensor.size(d) <= 1 || tensor.stride(d) % 8 == 0;
  STD_TORCH_CHECK(aligned, name, ": every head must begin at a multiple of 16 bytes");
}

void check_cache(const Tensor& cache, const char* name, const Tensor& query) {
  check_heads(cache, name, 4, query);
  STD_TORCH_CHECK(cache.size(1) >= 1 && cache.size(2) >= 1, name,
                  " must be [pages, page size, KV heads, head size]");
}

BlockCausalArgs prepare(const Tensor& query, const Tensor& key_cache, const Tensor& value_cache,
                        const Tensor& block_table, const Tensor& query_start_loc,
                        const Tensor& seq_lens, const Tensor& block_length, double scale,
                        const Tensor& out) {
  BlockCausalArgs args = {};
  args.dtype = attention_dtype(query);
  STD_TORCH_CHECK(query.dim() == 3, "query must be [tokens, heads, head size]");
  check_heads(query, "query", 3, query);
  check_cache(key_cache, "key_cache", query);
  check_cache(value_cache, "value_cache", query);
  check_heads(out, "out", 3, query);
  for (int64_t d = 0; d < 3; ++d) {
    STD_TORCH_CHECK(key_cache.size(d) == value_cache.size(d),
                    "value_cache must have key_cache's shape");
    STD_TORCH_CHECK(out.size(d) == query.size(d), "out must have query's shape");
  }
  args.tokens = query.size(0);
  args.heads = query.size(1);
  args.head_size = query.size(2);
  args.pages = key_cache.size(0);
  args.page_size = key_cache.size(1);
  args.kv_heads = key_cache.size(2);
  STD_TORCH_CHECK(args.heads % args.kv_heads == 0, "heads (", args.heads,
                  ") must be a multiple of KV heads (", args.kv_heads, ")");
  if (query.is_cuda()) {
    STD_TORCH_CHECK(args.head_size == 64 || args.head_size == 80 || args.head_size == 96 ||
                        args.head_size == 128,
                    "the head size must be 64, 80, 96 or 128 on CUDA, not ", args.head_size);
  } else {
    STD_TORCH_CHECK(args.head_size >= 1 && args.head_size <= kMaxHeadSize,
                    "the head size must lie in 1 ... ", kMaxHeadSize, ", not ", args.head_size);
  }
  STD_TORCH_CHECK(args.tokens * (args.heads / args.kv_heads) < INT32_MAX, "too many tokens");
  STD_TORCH_CHECK(seq_lens.dim() == 1, "seq_lens must have one dimension");
  args.requests = seq_lens.size(0);
  check_vector(seq_lens, "seq_lens", ScalarType::Int, args.requests, query);
  check_vector(query_start_loc, "query_start_loc", ScalarType::Int, args.requests + 1, query);
  check_vector(block_length, "block_length", ScalarType::Int, args.requests, query);
  check_device(block_table, "block_table", query, "query");
  STD_TORCH_CHECK(block_table.scalar_type() == ScalarType::Int && block_table.dim() == 2 &&
                      block_table.size(0) == args.requests,
                  "block_table must be int32 [requests, pages a request]");
  STD_TORCH_CHECK(block_table.size(1) <= 1 || block_table.stride(1) == 1,
                  "the rows of block_table must be contiguous");
  args.query = query.data_ptr();
  args.query_token_stride = query.stride(0);
  args.query_head_stride = query.stride(1);
  args.key = key_cache.data_ptr();
  args.key_page_stride = key_cache.stride(0);
  args.key_token_stride = key_cache.stride(1);
  args.key_head_stride = key_cache.stride(2);
  args.value = value_cache.data_ptr();
  args.value_page_stride = value_cache.stride(0);
  args.value_token_stride = value_cache.stride(1);
  args.value_head_stride = value_cache.stride(2);
  args.block_table = data<const int32_t>(block_table);
  args.table_stride = block_table.stride(0);
  args.table_width = block_table.size(1);
  args.query_start = data<const int32_t>(query_start_loc);
  args.seq_lens = data<const int32_t>(seq_lens);
  args.block_length = data<const int32_t>(block_length);
  args.out = out.data_ptr();
  args.out_token_stride = out.stride(0);
  args.out_head_stride = out.stride(1);
  args.scale = static_cast<float>(scale);
  return args;
}

bool nothing_to_do(const BlockCausalArgs& args) {
  return args.tokens == 0 || args.requests == 0;
}

void run_on_cpu(const BlockCausalArgs& args) {
  if (nothing_to_do(args)) return;
  const char* problem = block_causal_problem(args);
  STD_TORCH_CHECK(problem == nullptr, "block-causal attention: ", problem);
  block_causal_cpu(args, torch_threads());
}

void attention_on_cpu(const Tensor& query, const Tensor& key_cache, const Tensor& value_cache,
                      const Tensor& block_table, const Tensor& query_start_loc,
                      const Tensor& seq_lens, const Tensor& block_length, double scale,
                      const Tensor& out) {
  run_on_cpu(prepare(query, key_cache, value_cache, block_table, query_start_loc, seq_lens,
                     block_length, scale, out));
}

#ifdef USE_CUDA
void attention_on_cuda(const Tensor& query, const Tensor& key_cache, const Tensor& value_cache,
                       const Tensor& block_table, const Tensor& query_start_loc,
                       const Tensor& seq_lens, const Tensor& block_length, double scale,
                       const Tensor& out) {
  const CudaScope scope(query);
  const BlockCausalArgs args = prepare(query, key_cache, value_cache, block_table, query_start_loc,
                                       seq_lens, block_length, scale, out);
  if (nothing_to_do(args)) return;
  scope.check(block_causal_attention_cuda(args, scope.stream()));
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(vllm_diffusion, m) {
  m.def(
      "block_causal_attention(Tensor query, Tensor key_cache, Tensor value_cache, "
      "Tensor block_table, Tensor query_start_loc, Tensor seq_lens, Tensor block_length, "
      "float scale, Tensor(a!) out) -> ()");
}

VLLM_DIFFUSION_CPU_OP("block_causal_attention", &attention_on_cpu)
VLLM_DIFFUSION_CUDA_OP("block_causal_attention", &attention_on_cuda)

}  // namespace vllm_diffusion
