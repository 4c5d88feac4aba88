// Copies of tiles by the tensor memory accelerator (sm_90), and launches close behind one another.
#pragma once

#include <cuda.h>  // types only: the driver's one function is found at run time

#include <cstdint>

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace vllm_diffusion {

__device__ __forceinline__ uint64_t evict_first() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

__device__ __forceinline__ uint64_t evict_last() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

__device__ __forceinline__ void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Arrives, and expects that many bytes of copies in this phase.
__device__ __forceinline__ void arrive_expecting(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Copies the box at (x, y, z) of `map` to shared memory; `barrier` hears of its bytes.
__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap& map, uint32_t barrier,
                                         int x, int y, int z, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(x), "r"(y), "r"(z), "l"(policy)
      : "memory");
}

// What comes after may run before the kernels before this one have ended; their results may not be
// read, nor anything written that they use, until `wait_for_kernels_before`.
__device__ __forceinline__ void wait_for_kernels_before() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

// Lets the next kernel start as soon as there is room for it, where it was launched close behind.
__device__ __forceinline__ void let_next_kernel_start() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

}  // namespace vllm_diffusion

#endif  // __CUDA_ARCH_FEAT_SM90_ALL
