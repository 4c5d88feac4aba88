// noise on the CPU: positions over threads.
#include "noise.h"

namespace vllm_diffusion {

void noise_cpu(const NoiseArgs& args, const Parallel& parallel) {
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      args.out[i] = noise_at(args, i / args.columns, i % args.columns);
  };
  // A number takes some 30 ns.
  parallel_for(parallel, args.rows * args.columns, 1024, body);
}

}  // namespace vllm_diffusion
