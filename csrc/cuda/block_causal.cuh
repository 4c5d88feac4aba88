// What the block-causal kernels share: which rows a thread block works on, and where things lie.
//
// The heads of a group share their keys, so they are rows of one tile: row `i` of a request is head
// `i % group` of the group at window position `i / group`.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "block_causal.h"

namespace vllm_diffusion {

constexpr float kLog2E = 1.44269504088896340736f;

// `rows` rows from `first` on, of one request and KV head. None: nothing to do.
struct RowTile {
  int32_t request;
  int32_t first;
  int32_t rows;
  int32_t query_start;
  int32_t before;  // positions computed before the request's rows
  int32_t seq_len;
  int32_t block_length;
};

// The `index`-th tile of `kRows` rows. Request r's tiles start at start_r * group / kRows + r,
// which leaves room for a last tile that is not full: no lengths are needed on the host. All
// threads of the block call it.
template <int kRows>
__device__ __forceinline__ RowTile find_tile(const BlockCausalArgs& args, int32_t group,
                                             int32_t index) {
  int32_t through = 0;  // requests whose tiles start at or before `index`
  for (int32_t base = 0; base < args.requests; base += static_cast<int32_t>(blockDim.x)) {
    const int32_t r = base + static_cast<int32_t>(threadIdx.x);
    const bool starts = r < args.requests && args.query_start[r] * group / kRows + r <= index;
    const int32_t found = __syncthreads_count(starts);
    through += found;
    if (found < static_cast<int32_t>(blockDim.x)) break;
  }
  RowTile tile = {};
  tile.request = through - 1;
  if (tile.request < 0) return tile;
  const int32_t start = args.query_start[tile.request];
  const int32_t end = args.query_start[tile.request + 1];
  if (start < 0 || end < start || end > args.tokens) return tile;
  tile.first = (index - (start * group / kRows + tile.request)) * kRows;
  const int32_t left = (end - start) * group - tile.first;
  tile.rows = left < kRows ? left : kRows;
  tile.query_start = start;
  tile.seq_len = args.seq_lens[tile.request];
  tile.before = tile.seq_len - (end - start);
  tile.block_length = args.block_length[tile.request];
  return tile;
}

// The kernel for Hopper, and whether it is the one to use here.
bool hopper_suits(const BlockCausalArgs& args);
int block_causal_attention_hopper(const BlockCausalArgs& args, cudaStream_t stream);

// How many tiles of `kRows` rows there may be.
inline int64_t most_tiles(const BlockCausalArgs& args, int64_t rows) {
  return args.tokens * (args.heads / args.kv_heads) / rows + args.requests;
}

// Starts a thread block for every tile of `rows` rows and KV head, with `bytes` of shared memory.
inline int launch_tiles(void (*kernel)(BlockCausalArgs, int32_t), const BlockCausalArgs& args,
                        int64_t rows, int threads, int bytes, cudaStream_t stream) {
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<unsigned>(most_tiles(args, rows)),
                  static_cast<unsigned>(args.kv_heads));
  kernel<<<grid, threads, bytes, stream>>>(args, static_cast<int32_t>(args.heads / args.kv_heads));
  return cudaGetLastError();
}

// Where a token's key or value lies in the paged cache, in elements.
struct PagedRow {
  const int32_t* table;
  int32_t table_width;
  int32_t pages;
  int32_t page_size;
  int32_t page_shift;  // page_size == 1 << page_shift, or -1

  // Returns the page, or -1 for one that is out of range, and the token's place in it.
  __device__ __forceinline__ int32_t locate(int32_t token, int32_t& slot) const {
    const int32_t nth = page_shift >= 0 ? token >> page_shift : token / page_size;
    slot = token - nth * page_size;
    const int32_t page = nth < table_width ? __ldg(table + nth) : -1;
    return page < pages ? page : -1;
  }
};

__device__ __forceinline__ PagedRow paged_row(const BlockCausalArgs& args, int32_t request) {
  const int32_t size = static_cast<int32_t>(args.page_size);
  return {args.block_table + request * args.table_stride, static_cast<int32_t>(args.table_width),
          static_cast<int32_t>(args.pages), size, (size & (size - 1)) == 0 ? 31 - __clz(size) : -1};
}

}  // namespace vllm_diffusion
