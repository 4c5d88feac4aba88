// wgmma with few columns: a (64 x 16) and b (16 x 8 ... 64, by rows of its own) in shared memory.
// Of 8-bit numbers (e4m3) an instruction takes 32 columns of a, which are as many bytes.
#pragma once

#include "cuda/wgmma.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace vllm_diffusion {

#define VLLM_DIFFUSION_FOUR(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define VLLM_DIFFUSION_EIGHT(i) VLLM_DIFFUSION_FOUR(i), VLLM_DIFFUSION_FOUR(i + 4)
#define VLLM_DIFFUSION_SIXTEEN(i) VLLM_DIFFUSION_EIGHT(i), VLLM_DIFFUSION_EIGHT(i + 8)

// d (64 x columns) = a * b, plus what d was if `add`. Each thread has `columns` / 2 of d:
// `registers` and the operands name them, `inputs` and `keep` what comes after them.
#define VLLM_DIFFUSION_MMA(columns, registers, inputs, keep, ...)                                \
  template <Dtype kDtype>                                                                        \
  __device__ __forceinline__ void warpgroup_mma(float (&d)[columns / 2], uint64_t a, uint64_t b, \
                                                bool add) {                                      \
    if constexpr (kDtype == Dtype::kBFloat16) {                                                  \
      VLLM_DIFFUSION_WGMMA(#columns, "bf16", registers, inputs, keep, __VA_ARGS__);              \
    } else {                                                                                     \
      VLLM_DIFFUSION_WGMMA(#columns, "f16", registers, inputs, keep, __VA_ARGS__);               \
    }                                                                                            \
  }                                                                                              \
  __device__ __forceinline__ void warpgroup_mma_e4m3(float (&d)[columns / 2], uint64_t a,        \
                                                     uint64_t b, bool add) {                     \
    VLLM_DIFFUSION_WGMMA_E4M3(#columns, registers, inputs, keep, __VA_ARGS__);                   \
  }
#define VLLM_DIFFUSION_WGMMA(columns, type, registers, inputs, keep, ...)                          \
  asm volatile("{\n.reg .pred keep;\nsetp.ne.b32 keep, " keep                                      \
               ", 0;\n"                                                                            \
               "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." type "." type " {" registers \
               "}, " inputs ", keep, 1, 1, 0, 0;\n}\n"                                             \
               : __VA_ARGS__                                                                       \
               : "l"(a), "l"(b), "r"(static_cast<int32_t>(add)))
#define VLLM_DIFFUSION_WGMMA_E4M3(columns, registers, inputs, keep, ...)                   \
  asm volatile("{\n.reg .pred keep;\nsetp.ne.b32 keep, " keep                              \
               ", 0;\n"                                                                    \
               "wgmma.mma_async.sync.aligned.m64n" columns "k32.f32.e4m3.e4m3 {" registers \
               "}, " inputs ", keep, 1, 1;\n}\n"                                           \
               : __VA_ARGS__                                                               \
               : "l"(a), "l"(b), "r"(static_cast<int32_t>(add)))

VLLM_DIFFUSION_MMA(8, "%0, %1, %2, %3", "%4, %5", "%6", VLLM_DIFFUSION_FOUR(0))
VLLM_DIFFUSION_MMA(16, "%0, %1, %2, %3, %4, %5, %6, %7", "%8, %9", "%10", VLLM_DIFFUSION_EIGHT(0))
VLLM_DIFFUSION_MMA(32, "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15",
                   "%16, %17", "%18", VLLM_DIFFUSION_SIXTEEN(0))
VLLM_DIFFUSION_MMA(64,
                   "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                   "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31",
                   "%32, %33", "%34", VLLM_DIFFUSION_SIXTEEN(0), VLLM_DIFFUSION_SIXTEEN(16))

#undef VLLM_DIFFUSION_WGMMA_E4M3
#undef VLLM_DIFFUSION_WGMMA
#undef VLLM_DIFFUSION_MMA
#undef VLLM_DIFFUSION_SIXTEEN
#undef VLLM_DIFFUSION_EIGHT
#undef VLLM_DIFFUSION_FOUR

}  // namespace vllm_diffusion

#endif  // __CUDA_ARCH_FEAT_SM90_ALL
