// timetable on the CPU: a number per request, on one thread.
#include "timetable.h"

namespace vllm_diffusion {

void timetable_cpu(const TimetableArgs& args) {
  for (int64_t r = 0; r < args.requests; ++r)
    args.out[r] = timetable_share(args.eps[r], args.steps[r], args.step[r]);
}

}  // namespace vllm_diffusion
