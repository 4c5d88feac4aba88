// unmask on the CPU: a sort of at most kMaxCanvas ranks per request, requests over threads.
#include "unmask.h"

#include <algorithm>
#include <vector>

namespace vllm_diffusion {
namespace {

struct Ranked {
  float key;  // the higher the earlier
  int32_t position;
};

bool before(const Ranked& a, const Ranked& b) {
  return a.key != b.key ? a.key > b.key : a.position < b.position;
}

// One request: which of its masked rows are unmasked now.
class Request {
 public:
  Request(const UnmaskArgs& args, int64_t index)
      : args_(args),
        first_(args.row_start[index]),
        length_(args.row_start[index + 1] - args.row_start[index]),
        slot_(args.slots[index]),
        state_(args.slots[index] * args.width) {}

  // Unmasks this step's positions; returns how many masked ones are left.
  int32_t run(Ranked* ranked) const {
    int32_t count = 0;
    const bool by_entropy = args_.rule[slot_] == kEntropyBounded;
    for (int32_t p = 0; p < length_; ++p) {
      if (!args_.masked[state_ + p]) continue;
      ranked[count++] = {by_entropy ? -rank_entropy(args_.entropy[first_ + p])
                                    : rank_confidence(args_.confidence[first_ + p]),
                         p};
    }
    if (count == 0) return 0;
    const int32_t unmasked =
        args_.rule[slot_] == kGiven ? keep_given(ranked, count) : choose(ranked, count);
    for (int32_t i = 0; i < unmasked; ++i) {
      const int64_t p = ranked[i].position;
      args_.canvas[state_ + p] = args_.token[first_ + p];
      args_.masked[state_ + p] = false;
      args_.unmasked_at[state_ + p] = args_.step[slot_];
    }
    args_.step[slot_] += 1;
    return count - unmasked;
  }

 private:
  // Moves the caller's picks to the front.
  int32_t keep_given(Ranked* ranked, int32_t count) const {
    if (args_.picked == nullptr) return 0;
    Ranked* end = std::partition(
        ranked, ranked + count, [&](const Ranked& r) { return args_.picked[first_ + r.position]; });
    return static_cast<int32_t>(end - ranked);
  }

  // Orders the candidates by the rule and returns how many of the first to take.
  int32_t choose(Ranked* ranked, int32_t count) const {
    const float threshold = args_.threshold[slot_];
    const int32_t quota = std::min(
        count, unmask_quota(args_.block_length[slot_], args_.steps[slot_], args_.step[slot_]));
    if (args_.rule[slot_] == kSequential) return quota;  // already leftmost first
    std::sort(ranked, ranked + count, before);
    const auto leading = [&](auto passes) {
      int32_t n = 0;
      while (n < count && passes(n)) ++n;
      return n;
    };
    switch (args_.rule[slot_]) {
      case kStatic:
        return quota;
      case kDynamic:
        return std::max(quota, leading([&](int32_t i) { return ranked[i].key > threshold; }));
      case kThreshold:
        return std::max(1, leading([&](int32_t i) { return ranked[i].key >= threshold; }));
      case kFactor:
        return factor_count(
            leading([&](int32_t i) { return ranked[i].key >= factor_bar(threshold, i); }), count);
      default: {  // kEntropyBounded
        double sum = 0.0;
        return std::max(1, leading([&](int32_t i) {
                          sum -= static_cast<double>(ranked[i].key);
                          return sum < static_cast<double>(threshold);
                        }));
      }
    }
  }

  const UnmaskArgs& args_;
  const int64_t first_;
  const int32_t length_;
  const int64_t slot_;
  const int64_t state_;
};

}  // namespace

const char* unmask_problem(const UnmaskArgs& args) {
  if (args.row_start[0] < 0) return "row_start must not be negative";
  for (int64_t r = 0; r < args.requests; ++r) {
    const int64_t length = static_cast<int64_t>(args.row_start[r + 1]) - args.row_start[r];
    if (length < 0) return "row_start must not decrease";
    if (length > args.width) return "a request has more rows than the canvas is wide";
    const int64_t slot = args.slots[r];
    if (slot < 0 || slot >= args.num_slots) return "a slot is out of range";
    if (args.rule[slot] < 0 || args.rule[slot] >= kUnmaskRules)
      return "a rule is none of the known ones";
    if (args.rule[slot] == kGiven && args.picked == nullptr) return "rule GIVEN needs `picked`";
  }
  if (args.row_start[args.requests] > args.rows)
    return "row_start reaches past the rows of `token`";
  return nullptr;
}

void unmask_cpu(const UnmaskArgs& args, const Parallel& parallel) {
  auto body = [&](int64_t begin, int64_t end) {
    Ranked ranked[kMaxCanvas];
    for (int64_t r = begin; r < end; ++r) args.remaining[r] = Request(args, r).run(ranked);
  };
  // Below some ten thousand rows, waking a thread takes longer than the work.
  const int64_t per_request = args.rows / args.requests + 1;
  parallel_for(parallel, args.requests, 16384 / per_request + 1, body);
}

}  // namespace vllm_diffusion
