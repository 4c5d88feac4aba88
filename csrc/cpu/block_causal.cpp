// Block-causal attention on the CPU: tiles of rows over threads.
#include "block_causal.h"

#include <vector>

#include "simd/kernels.h"

namespace vllm_diffusion {

const char* block_causal_problem(const BlockCausalArgs& args) {
  if (args.query_start[0] < 0) return "query_start_loc must not be negative";
  for (int64_t r = 0; r < args.requests; ++r) {
    const int64_t first = args.query_start[r], end = args.query_start[r + 1];
    if (end < first || end > args.tokens)
      return "query_start_loc must ascend and end within query's tokens";
    if (end == first) continue;
    if (args.block_length[r] < 1) return "block_length must be at least 1";
    if (args.seq_lens[r] < end - first) return "seq_lens must cover the request's queries";
    const int64_t pages = (args.seq_lens[r] + args.page_size - 1) / args.page_size;
    if (pages > args.table_width) return "block_table has too few pages for seq_lens";
    for (int64_t i = 0; i < pages; ++i) {
      const int32_t page = args.block_table[r * args.table_stride + i];
      if (page < 0 || page >= args.pages) return "block_table names a page that does not exist";
    }
  }
  return nullptr;
}

void block_causal_cpu(const BlockCausalArgs& args, const Parallel& parallel) {
  const IsaKernels& kernels = isa_kernels();
  const int64_t group = args.heads / args.kv_heads;
  std::vector<AttendTile> tiles;
  for (int64_t r = 0; r < args.requests; ++r) {
    const int64_t rows = (args.query_start[r + 1] - args.query_start[r]) * group;
    for (int64_t first = 0; first < rows; first += kAttendRows) {
      const int64_t count = rows - first < kAttendRows ? rows - first : kAttendRows;
      for (int64_t head = 0; head < args.kv_heads; ++head) tiles.push_back({r, head, first, count});
    }
  }
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) kernels.attend(args, tiles[static_cast<size_t>(i)]);
  };
  parallel_for(parallel, static_cast<int64_t>(tiles.size()), 1, body);
}

}  // namespace vllm_diffusion
