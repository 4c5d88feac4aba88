// Hopper's matrix instruction (wgmma, sm_90a), and barriers in shared memory.
//
// Operands in shared memory are tiles of rows of 128 bytes, of which 8 make an atom of 1024 bytes
// with its 16-byte pieces permuted (`swizzled`). A wider tile is several such panels.
#pragma once

#include <cstdint>

#include "cuda/mma.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace vllm_diffusion {

constexpr uint32_t kAtom = 1024;
constexpr uint32_t kPanelRow = 128;

// Where piece `piece` (16 bytes) of row `row` lies in a panel.
__device__ __forceinline__ uint32_t swizzled(int row, int piece) {
  return static_cast<uint32_t>(row) * kPanelRow + (static_cast<uint32_t>(piece ^ (row & 7)) << 4);
}

// Descriptor of an operand at `address`. `panels`: bytes from one panel to the next, where the
// instruction runs over several (an operand by columns).
__device__ __forceinline__ uint64_t operand(uint32_t address, uint32_t panels = 16) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) |
         static_cast<uint64_t>(panels >> 4) << 16 | static_cast<uint64_t>(kAtom >> 4) << 32 |
         static_cast<uint64_t>(1) << 62;
}

__device__ __forceinline__ void warpgroup_begin() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void warpgroup_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int kPending>
__device__ __forceinline__ void warpgroup_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving accesses to accumulators across an instruction in flight.
template <int kCount>
__device__ __forceinline__ void hold(float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(values[i])::"memory");
}

// Orders what this thread wrote to shared memory, or waited for, before the matrix unit's reads.
__device__ __forceinline__ void fence_for_matrix_unit() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

__device__ __forceinline__ void init_barrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives once the thread's copies so far have.
__device__ __forceinline__ void arrive_after_copies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// Waits for the end of the phase of this parity.
__device__ __forceinline__ void wait(uint32_t barrier, int parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra ready;\nbra again;\nready:\n}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Named barriers; 0 is __syncthreads'.
template <int kCount>
__device__ __forceinline__ void meet(int id) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(kCount) : "memory");
}

// Lets those who meet there go on, without waiting for them.
template <int kCount>
__device__ __forceinline__ void pass(int id) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "n"(kCount) : "memory");
}

#define VLLM_DIFFUSION_REGISTERS_128                                                 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define VLLM_DIFFUSION_OPERANDS_128                                                               \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
      "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),    \
      "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),  \
      "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]),  \
      "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),  \
      "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]),  \
      "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]),  \
      "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),  \
      "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define VLLM_DIFFUSION_REGISTERS_64                                        \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define VLLM_DIFFUSION_OPERANDS_64                                                                \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
      "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),    \
      "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),  \
      "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]),  \
      "+f"(d[29]), "+f"(d[30]), "+f"(d[31])

// d (64 x 128) = a * b, plus what d was if `add`; a and b in shared memory, b by rows of its own.
template <Dtype kDtype>
__device__ __forceinline__ void warpgroup_mma(float (&d)[64], uint64_t a, uint64_t b, bool add) {
  const int32_t keep = add;
#define VLLM_DIFFUSION_WGMMA(type)                                            \
  asm volatile(                                                               \
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, %66, 0;\n"                      \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type            \
      " {" VLLM_DIFFUSION_REGISTERS_128 "}, %64, %65, keep, 1, 1, 0, 0;\n}\n" \
      : VLLM_DIFFUSION_OPERANDS_128                                           \
      : "l"(a), "l"(b), "r"(keep))
  if constexpr (kDtype == Dtype::kBFloat16) {
    VLLM_DIFFUSION_WGMMA("bf16");
  } else {
    VLLM_DIFFUSION_WGMMA("f16");
  }
#undef VLLM_DIFFUSION_WGMMA
}

// d (64 x 128) += a * b; a in registers, b in shared memory, by columns.
template <Dtype kDtype>
__device__ __forceinline__ void warpgroup_mma(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
#define VLLM_DIFFUSION_WGMMA(type)                                                             \
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                    \
               " {" VLLM_DIFFUSION_REGISTERS_128 "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n" \
               : VLLM_DIFFUSION_OPERANDS_128                                                   \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
  if constexpr (kDtype == Dtype::kBFloat16) {
    VLLM_DIFFUSION_WGMMA("bf16");
  } else {
    VLLM_DIFFUSION_WGMMA("f16");
  }
#undef VLLM_DIFFUSION_WGMMA
}

// d (64 x 64) += a * b; a in registers, b in shared memory, by columns.
template <Dtype kDtype>
__device__ __forceinline__ void warpgroup_mma(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
#define VLLM_DIFFUSION_WGMMA(type)                                                            \
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                    \
               " {" VLLM_DIFFUSION_REGISTERS_64 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;\n" \
               : VLLM_DIFFUSION_OPERANDS_64                                                   \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
  if constexpr (kDtype == Dtype::kBFloat16) {
    VLLM_DIFFUSION_WGMMA("bf16");
  } else {
    VLLM_DIFFUSION_WGMMA("f16");
  }
#undef VLLM_DIFFUSION_WGMMA
}

#undef VLLM_DIFFUSION_REGISTERS_128
#undef VLLM_DIFFUSION_OPERANDS_128
#undef VLLM_DIFFUSION_REGISTERS_64
#undef VLLM_DIFFUSION_OPERANDS_64

}  // namespace vllm_diffusion

#endif  // __CUDA_ARCH_FEAT_SM90_ALL
