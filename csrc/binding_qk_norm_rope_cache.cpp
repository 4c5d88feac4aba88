// torch.ops.vllm_diffusion.qk_norm_rope_cache: checks, device guard, stream, registration.
#include "binding.h"
#include "binding_cuda.h"
#include "qk_norm_rope_cache.h"

namespace vllm_diffusion {

#ifdef USE_CUDA
namespace {

RopePages pages_of(const Tensor& cache, const char* name, const Tensor& qkv,
                   const QkNormRopeCacheArgs& args) {
  check_device(cache, name, qkv, "qkv");
  const bool eight = args.key_scale != nullptr;
  if (eight) {
    // Upstream keeps such a cache as bytes.
    STD_TORCH_CHECK(
        cache.scalar_type() == ScalarType::Float8_e4m3fn || cache.scalar_type() == ScalarType::Byte,
        name, " must be float8_e4m3fn or uint8 where it has a scale");
  } else {
    STD_TORCH_CHECK(cache.scalar_type() == qkv.scalar_type(), name, " must have qkv's dtype");
  }
  STD_TORCH_CHECK(
      cache.dim() == 4 && cache.size(2) == args.kv_heads && cache.size(3) == args.head_size, name,
      " must be [pages, page size, ", args.kv_heads, ", ", args.head_size, "]");
  STD_TORCH_CHECK(
      begins_at(cache, eight ? 2 : 4) && cache.stride(3) == 1 && cache.stride(0) % 2 == 0 &&
          cache.stride(1) % 2 == 0 && cache.stride(2) % 2 == 0,
      name, "'s heads must be contiguous and begin at multiples of ", eight ? 2 : 4, " bytes");
  return {cache.data_ptr(), cache.stride(0), cache.stride(1), cache.stride(2)};
}

const float* scale_of(const Tensor& scale, const char* name, const Tensor& qkv) {
  check_device(scale, name, qkv, "qkv");
  STD_TORCH_CHECK(scale.scalar_type() == ScalarType::Float && scale.numel() == 1, name,
                  " must be one float32");
  return data<float>(scale);
}

void qk_norm_rope_cache(
    const Tensor& qkv, int64_t heads, int64_t kv_heads, const std::optional<Tensor>& q_weight,
    const std::optional<Tensor>& k_weight, double epsilon, const Tensor& cos_sin,
    const Tensor& positions, const std::optional<Tensor>& key_cache,
    const std::optional<Tensor>& value_cache, const std::optional<Tensor>& slots,
    const std::optional<Tensor>& key_scale, const std::optional<Tensor>& value_scale,
    const std::optional<Tensor>& queries, const std::optional<Tensor>& query_scale) {
  const CudaScope scope(qkv);
  const ScalarType type = qkv.scalar_type();
  QkNormRopeCacheArgs args = {};
  args.dtype = half_dtype(qkv, "qkv");
  STD_TORCH_CHECK(heads > 0 && kv_heads > 0 && heads + 2 * kv_heads < (1 << 16),
                  "heads and kv_heads must be positive, and fewer than 65536 in all");
  args.heads = static_cast<int>(heads);
  args.kv_heads = static_cast<int>(kv_heads);
  const int64_t all_heads = heads + 2 * kv_heads;
  STD_TORCH_CHECK(qkv.dim() == 2 && qkv.size(1) % all_heads == 0 && qkv.stride(1) == 1,
                  "qkv must be [rows, ", all_heads, " heads], each row contiguous");
  const int64_t columns = qkv.size(1), head_size = columns / all_heads;
  STD_TORCH_CHECK(head_size > 0 && head_size % 4 == 0 && head_size <= kRopeMaxHead,
                  "a head must have a multiple of 4 elements and at most ", kRopeMaxHead, ", not ",
                  head_size);
  args.head_size = static_cast<int>(head_size);
  check_device(cos_sin, "cos_sin", qkv, "qkv");
  STD_TORCH_CHECK(cos_sin.scalar_type() == type, "cos_sin must have qkv's dtype");
  STD_TORCH_CHECK(cos_sin.dim() == 2 && cos_sin.is_contiguous() && begins_at(cos_sin, 4),
                  "cos_sin must have two dimensions and be contiguous");
  const int64_t rotary = cos_sin.size(1);
  STD_TORCH_CHECK(rotary > 0 && rotary % 4 == 0 && rotary <= head_size,
                  "cos_sin's columns must be a multiple of 4 and at most a head's ", head_size,
                  ", not ", rotary);
  args.rotary = static_cast<int>(rotary);
  args.max_positions = cos_sin.size(0);
  args.cos_sin = cos_sin.data_ptr();
  args.rows = qkv.size(0);
  args.row_stride = args.rows > 1 ? qkv.stride(0) : columns;
  STD_TORCH_CHECK(args.row_stride >= columns && args.row_stride % 2 == 0 && begins_at(qkv, 4),
                  "the rows of qkv must begin at multiples of 4 bytes and not overlap");
  args.qkv = qkv.data_ptr();
  STD_TORCH_CHECK(q_weight.has_value() == k_weight.has_value(),
                  "q_weight and k_weight come together or not at all");
  if (q_weight) {
    check_vector(*q_weight, "q_weight", type, head_size, qkv);
    check_vector(*k_weight, "k_weight", type, head_size, qkv);
    STD_TORCH_CHECK(begins_at(*q_weight, 4) && begins_at(*k_weight, 4),
                    "q_weight and k_weight must begin at multiples of 4 bytes");
    args.q_weight = q_weight->data_ptr();
    args.k_weight = k_weight->data_ptr();
  }
  args.epsilon = static_cast<float>(epsilon);
  check_vector(positions, "positions", ScalarType::Long, args.rows, qkv);
  args.positions = data<int64_t>(positions);
  STD_TORCH_CHECK(
      key_cache.has_value() == slots.has_value() && value_cache.has_value() == slots.has_value(),
      "key_cache, value_cache and slots come together or not at all");
  STD_TORCH_CHECK(key_scale.has_value() == value_scale.has_value() &&
                      (!key_scale.has_value() || slots.has_value()),
                  "key_scale and value_scale come together, with a cache, or not at all");
  STD_TORCH_CHECK(queries.has_value() == query_scale.has_value() &&
                      (!queries.has_value() || key_scale.has_value()),
                  "queries and query_scale come together, with key_scale, or not at all");
  if (key_scale) {
    args.key_scale = scale_of(*key_scale, "key_scale", qkv);
    args.value_scale = scale_of(*value_scale, "value_scale", qkv);
  }
  if (queries) {
    args.query_scale = scale_of(*query_scale, "query_scale", qkv);
    check_device(*queries, "queries", qkv, "qkv");
    STD_TORCH_CHECK(queries->scalar_type() == ScalarType::Float8_e4m3fn && queries->dim() == 3 &&
                        queries->size(0) == args.rows && queries->size(1) == heads &&
                        queries->size(2) == head_size && queries->is_contiguous() &&
                        begins_at(*queries, 2),
                    "queries must be float8_e4m3fn, [", args.rows, ", ", heads, ", ", head_size,
                    "], contiguous");
    args.queries = queries->data_ptr();
  }
  if (slots) {
    args.keys = pages_of(*key_cache, "key_cache", qkv, args);
    args.values = pages_of(*value_cache, "value_cache", qkv, args);
    const int64_t page_size = key_cache->size(1), pages = key_cache->size(0);
    STD_TORCH_CHECK(value_cache->size(0) == pages && value_cache->size(1) == page_size,
                    "value_cache must have key_cache's pages");
    STD_TORCH_CHECK(page_size > 0 && pages <= ((int64_t{1} << 31) - 1) / page_size,
                    "key_cache must have slots, and fewer than 2^31");
    args.page_size = static_cast<int>(page_size);
    args.most_slots = pages * page_size;
    args.stored = slots->size(0);
    STD_TORCH_CHECK(args.stored <= args.rows, "slots must have ", args.rows,
                    " entries at most, not ", args.stored);
    check_vector(*slots, "slots", ScalarType::Long, args.stored, qkv);
    args.slots = data<int64_t>(*slots);
  }
  if (args.rows == 0) return;
  scope.check(qk_norm_rope_cache_cuda(args, scope.stream()));
}

}  // namespace
#endif

STABLE_TORCH_LIBRARY_FRAGMENT(vllm_diffusion, m) {
  m.def(
      "qk_norm_rope_cache(Tensor(a!) qkv, int heads, int kv_heads, Tensor? q_weight, "
      "Tensor? k_weight, float epsilon, Tensor cos_sin, Tensor positions, Tensor(b!)? key_cache, "
      "Tensor(c!)? value_cache, Tensor? slots, Tensor? key_scale, Tensor? value_scale, "
      "Tensor(d!)? queries, Tensor? query_scale) -> ()");
}

VLLM_DIFFUSION_CUDA_OP("qk_norm_rope_cache", &qk_norm_rope_cache)

}  // namespace vllm_diffusion
