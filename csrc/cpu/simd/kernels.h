// The hot loops, compiled once per instruction set and chosen at run time.
#pragma once

#include <cstdint>

#include "block_causal.h"
#include "common.h"
#include "philox.h"
#include "slice.h"

namespace vllm_diffusion {

// Part of a row: ids [begin, begin + count), count <= kSliceIds.
struct Slice {
  const void* row;
  Dtype dtype;
  int64_t begin;
  int64_t count;
  int64_t banned;
};

// Rows of queries attended to together, and keys looked at together.
constexpr int64_t kAttendRows = 32;
constexpr int64_t kAttendKeys = 32;

// Rows of one request and KV head: row `i` is head `i % group` of its group at window position
// `i / group`.
struct AttendTile {
  int64_t request;
  int64_t kv_head;
  int64_t first;
  int64_t count;  // at most kAttendRows
};

struct IsaKernels {
  // Scales are 1 / temperature, of the statistics and of the draw; 0 for the latter: no draw.
  SliceStats (*stats)(const Slice& slice, float scale, float draw_scale);
  // Lowest id of the slice, the banned one aside, whose logit equals `value`; -1 if there is none.
  int64_t (*find)(const Slice& slice, float value);
  // SliceStats::mass in float64; `max1` is the slice's highest choosable logit.
  double (*mass)(const Slice& slice, float temperature, float max1);
  // Advances `best` by the ids of the slice.
  void (*draw)(const Slice& slice, float temperature, const PhiloxKey& key, Draw& best);
  // Attention of the tile's rows, written to `out`.
  void (*attend)(const BlockCausalArgs& args, const AttendTile& tile);
};

// The variant for this machine, or the one VLLM_DIFFUSION_CPU_ISA names (baseline, avx2, avx512).
// Throws std::runtime_error for a name that is unknown or that the machine cannot run.
const IsaKernels& isa_kernels();

#define VLLM_DIFFUSION_DECLARE_ISA(name)                                                    \
  namespace name {                                                                          \
  SliceStats slice_stats(const Slice& slice, float scale, float draw_scale);                \
  int64_t slice_find(const Slice& slice, float value);                                      \
  double slice_mass(const Slice& slice, float temperature, float max1);                     \
  void slice_draw(const Slice& slice, float temperature, const PhiloxKey& key, Draw& best); \
  void attend(const BlockCausalArgs& args, const AttendTile& tile);                         \
  }

VLLM_DIFFUSION_DECLARE_ISA(baseline)
VLLM_DIFFUSION_DECLARE_ISA(avx2)
VLLM_DIFFUSION_DECLARE_ISA(avx512)

#undef VLLM_DIFFUSION_DECLARE_ISA

}  // namespace vllm_diffusion
