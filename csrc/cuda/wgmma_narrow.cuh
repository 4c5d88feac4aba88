// wgmma with few columns: a (64 x 16) and b (16 x 8 ... 64, by rows of its own) in shared memory.
#pragma once

#include "cuda/wgmma.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace vllm_diffusion {

// d (64 x 8) = a * b, plus what d was if `add`.
template <Dtype kDtype>
__device__ __forceinline__ void warpgroup_mma(float (&d)[4], uint64_t a, uint64_t b, bool add) {
  const int32_t keep = add;
#define VLLM_DIFFUSION_WGMMA(type)                               \
  asm volatile(                                                  \
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, %6, 0;\n"          \
      "wgmma.mma_async.sync.aligned.m64n8k16.f32." type "." type \
      " {%0, %1, %2, %3}, %4, %5, keep, 1, 1, 0, 0;\n}\n"        \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])           \
      : "l"(a), "l"(b), "r"(keep))
  if constexpr (kDtype == Dtype::kBFloat16) {
    VLLM_DIFFUSION_WGMMA("bf16");
  } else {
    VLLM_DIFFUSION_WGMMA("f16");
  }
#undef VLLM_DIFFUSION_WGMMA
}

// d (64 x 16) = a * b, plus what d was if `add`.
template <Dtype kDtype>
__device__ __forceinline__ void warpgroup_mma(float (&d)[8], uint64_t a, uint64_t b, bool add) {
  const int32_t keep = add;
#define VLLM_DIFFUSION_WGMMA(type)                                                          \
  asm volatile(                                                                             \
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, %10, 0;\n"                                    \
      "wgmma.mma_async.sync.aligned.m64n16k16.f32." type "." type                           \
      " {%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, keep, 1, 1, 0, 0;\n}\n"                   \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), \
        "+f"(d[7])                                                                          \
      : "l"(a), "l"(b), "r"(keep))
  if constexpr (kDtype == Dtype::kBFloat16) {
    VLLM_DIFFUSION_WGMMA("bf16");
  } else {
    VLLM_DIFFUSION_WGMMA("f16");
  }
#undef VLLM_DIFFUSION_WGMMA
}

// d (64 x 32) = a * b, plus what d was if `add`.
template <Dtype kDtype>
__device__ __forceinline__ void warpgroup_mma(float (&d)[16], uint64_t a, uint64_t b, bool add) {
  const int32_t keep = add;
#define VLLM_DIFFUSION_WGMMA(type)                                                                \
  asm volatile(                                                                                   \
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, %18, 0;\n"                                          \
      "wgmma.mma_async.sync.aligned.m64n32k16.f32." type "." type                                 \
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, %16, %17, keep, " \
      "1, 1, 0, 0;\n}\n"                                                                          \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),       \
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),   \
        "+f"(d[14]), "+f"(d[15])                                                                  \
      : "l"(a), "l"(b), "r"(keep))
  if constexpr (kDtype == Dtype::kBFloat16) {
    VLLM_DIFFUSION_WGMMA("bf16");
  } else {
    VLLM_DIFFUSION_WGMMA("f16");
  }
#undef VLLM_DIFFUSION_WGMMA
}

// d (64 x 64) = a * b, plus what d was if `add`.
template <Dtype kDtype>
__device__ __forceinline__ void warpgroup_mma(float (&d)[32], uint64_t a, uint64_t b, bool add) {
  const int32_t keep = add;
#define VLLM_DIFFUSION_WGMMA(type)                                                                 \
  asm volatile(                                                                                    \
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, %34, 0;\n"                                           \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                                  \
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "    \
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, keep, 1, 1, "   \
      "0, 0;\n}\n"                                                                                 \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),        \
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),    \
        "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), \
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), \
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])                                         \
      : "l"(a), "l"(b), "r"(keep))
  if constexpr (kDtype == Dtype::kBFloat16) {
    VLLM_DIFFUSION_WGMMA("bf16");
  } else {
    VLLM_DIFFUSION_WGMMA("f16");
  }
#undef VLLM_DIFFUSION_WGMMA
}

}  // namespace vllm_diffusion

#endif  // __CUDA_ARCH_FEAT_SM90_ALL
