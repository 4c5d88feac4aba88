// Staged writes and block tables of Model Runner V2.
#include <cstring>

#include "runner_kernels.h"

namespace vllm_diffusion {
namespace {

int32_t* matrix(uint64_t address) {
  return reinterpret_cast<int32_t*>(static_cast<uintptr_t>(address));
}

}  // namespace

void copy_ints(const Ints& source, int64_t from, const Ints& target, int64_t to, int64_t count) {
  if (count <= 0) return;
  if (source.wide == target.wide) {
    const int64_t size = source.wide ? 8 : 4;
    std::memcpy(static_cast<char*>(target.data) + to * size,
                static_cast<const char*>(source.data) + from * size,
                static_cast<size_t>(count * size));
    return;
  }
  for (int64_t i = 0; i < count; ++i) target.set(to + i, source[from + i]);
}

const char* apply_write(void* output, int64_t elements, int64_t stride, int64_t element_size,
                        const Ints& indices, const Ints& starts, const void* contents,
                        int64_t num_contents, const Ints& cu_lens) {
  int64_t begin = 0;
  for (int64_t i = 0; i < indices.size; ++i) {
    const int64_t end = cu_lens[i];
    const int64_t target = indices[i] * stride + starts[i];
    if (end < begin || end > num_contents) return "write_cu_lens do not fit write_contents";
    if (indices[i] < 0 || starts[i] < 0 || target + (end - begin) > elements) {
      return "a write ends outside the output";
    }
    std::memcpy(static_cast<char*>(output) + target * element_size,
                static_cast<const char*>(contents) + begin * element_size,
                static_cast<size_t>((end - begin) * element_size));
    begin = end;
  }
  return nullptr;
}

const char* apply_grouped_write(const uint64_t* outputs, const int64_t* strides, int64_t groups,
                                const Ints& indices, const Ints& starts, const int32_t* contents,
                                int64_t num_contents, const Ints& cu_lens, const Ints& group_ids) {
  int64_t begin = 0;
  for (int64_t i = 0; i < indices.size; ++i) {
    const int64_t end = cu_lens[i];
    const int64_t group = group_ids[i];
    if (end < begin || end > num_contents) return "write_cu_lens do not fit write_contents";
    if (group < 0 || group >= groups) return "a group id is out of range";
    if (indices[i] < 0 || starts[i] < 0 || starts[i] + (end - begin) > strides[group]) {
      return "a write ends outside its row";
    }
    std::memcpy(matrix(outputs[group]) + indices[i] * strides[group] + starts[i], contents + begin,
                static_cast<size_t>(end - begin) * sizeof(int32_t));
    begin = end;
  }
  return nullptr;
}

const char* gather_block_tables(const Ints& requests, const uint64_t* sources,
                                const uint64_t* targets, const int64_t* strides, int64_t groups,
                                const Ints& num_blocks, int64_t num_blocks_stride,
                                int64_t num_reqs) {
  if (num_reqs > requests.size) return "num_reqs exceeds the batch";
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t stride = strides[group];
    for (int64_t i = 0; i < num_reqs; ++i) {
      const int64_t slot = requests[i];
      if (slot < 0 || slot >= num_blocks_stride) return "a request's slot is out of range";
      const int64_t count = num_blocks[group * num_blocks_stride + slot];
      if (count < 0 || count > stride) return "a request has more blocks than a row holds";
      std::memcpy(matrix(targets[group]) + i * stride, matrix(sources[group]) + slot * stride,
                  static_cast<size_t>(count) * sizeof(int32_t));
    }
  }
  return nullptr;
}

const char* compute_slot_mappings(const SlotMappingArgs& args) {
  const int64_t requests = args.idx_mapping.size;
  if (args.query_start_loc.size < requests + 1) return "query_start_loc is too short";
  const int64_t tokens = args.query_start_loc[requests];
  if (tokens < 0 || tokens > args.pos.size || tokens > args.max_num_tokens) {
    return "more tokens than positions or slots";
  }
  for (int64_t i = 0; i < requests; ++i) {
    if (args.query_start_loc[i] < 0 || args.query_start_loc[i] > args.query_start_loc[i + 1]) {
      return "query_start_loc does not ascend";
    }
  }
  for (int64_t group = 0; group < args.groups; ++group) {
    int64_t* slots = args.slots + group * args.slots_stride;
    const int32_t* table = matrix(args.block_tables[group]);
    const int64_t stride = args.strides[group];
    const int64_t block_size = args.block_sizes[group];
    const bool shard = args.cp_size != 1 && args.sharded[group];
    if (block_size <= 0) return "a block size is not positive";
    for (int64_t i = 0; i < requests; ++i) {
      const int64_t slot = args.idx_mapping[i];
      const int64_t end = args.query_start_loc[i + 1];
      for (int64_t t = args.query_start_loc[i]; t < end; ++t) {
        slots[t] = args.pad;
        if (slot < 0 || !args.enabled[group]) continue;
        int64_t position = args.pos[t];
        if (position < 0) return "a position is negative";
        if (shard) {
          // Context parallelism: ranks take turns of `cp_interleave` tokens.
          const int64_t round = block_size * args.cp_size;
          const int64_t offset = position % round;
          if (offset / args.cp_interleave % args.cp_size != args.cp_rank) continue;
          position = position / round * block_size +
                     offset / (args.cp_interleave * args.cp_size) * args.cp_interleave +
                     offset % args.cp_interleave;
        }
        const int64_t block = position / block_size;
        if (block >= stride) return "a position lies beyond its block table";
        slots[t] = table[slot * stride + block] * block_size + position % block_size;
      }
    }
    for (int64_t t = tokens; t < args.max_num_tokens; ++t) slots[t] = args.pad;
  }
  return nullptr;
}

}  // namespace vllm_diffusion
