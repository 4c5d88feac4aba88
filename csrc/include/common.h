// Types that every layer shares. No torch header here: the launchers take raw pointers.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define VLLM_DIFFUSION_HD static __host__ __device__ __forceinline__
#define VLLM_DIFFUSION_HD_MEMBER __host__ __device__ __forceinline__
#else
// `static`, not `inline`: the CPU sources are compiled once per instruction set, and a shared weak
// symbol would let the linker hand AVX-512 code to a machine without it.
#define VLLM_DIFFUSION_HD [[maybe_unused]] static inline
#define VLLM_DIFFUSION_HD_MEMBER inline
#endif

namespace vllm_diffusion {

enum class Dtype : int32_t { kFloat32, kFloat16, kBFloat16 };

// How a CPU launcher runs work on threads. The binding fills it with torch's own pool, so that the
// kernels obey torch.set_num_threads() and the CPU worker's thread binding, and bring no second
// OpenMP runtime.
struct Parallel {
  using Body = void (*)(int64_t begin, int64_t end, void* context);
  // Splits [0, count) into ranges of at least `grain` and returns when all are done.
  void (*run)(int64_t count, int64_t grain, Body body, void* context);
  int threads;
};

// Calls body(begin, end) over [0, count) on the threads of `parallel`. `body` must not throw.
template <typename F>
void parallel_for(const Parallel& parallel, int64_t count, int64_t grain, F& body) {
  parallel.run(
      count, grain,
      [](int64_t begin, int64_t end, void* context) { (*static_cast<F*>(context))(begin, end); },
      &body);
}

}  // namespace vllm_diffusion
