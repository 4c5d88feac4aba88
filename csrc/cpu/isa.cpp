// Chooses the compiled variant of the hot loops.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "simd/kernels.h"

namespace vllm_diffusion {
namespace {

struct Variant {
  const char* name;
  bool usable;
  IsaKernels kernels;
};

// Best first.
const Variant kVariants[] = {
#if defined(VLLM_DIFFUSION_HAS_X86_VARIANTS)
    {"avx512",
     __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"),
     {avx512::slice_stats, avx512::slice_find, avx512::slice_mass, avx512::slice_draw,
      avx512::attend}},
    {"avx2",
     __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c"),
     {avx2::slice_stats, avx2::slice_find, avx2::slice_mass, avx2::slice_draw, avx2::attend}},
#endif
    {"baseline",
     true,
     {baseline::slice_stats, baseline::slice_find, baseline::slice_mass, baseline::slice_draw,
      baseline::attend}},
};

const IsaKernels& choose() {
  const char* wanted = std::getenv("VLLM_DIFFUSION_CPU_ISA");
  std::string known;
  for (const Variant& variant : kVariants) {
    if (wanted == nullptr || *wanted == '\0') {
      if (variant.usable) return variant.kernels;
      continue;
    }
    if (std::string(wanted) == variant.name && variant.usable) return variant.kernels;
    if (variant.usable) known += std::string(known.empty() ? "" : ", ") + variant.name;
  }
  throw std::runtime_error("VLLM_DIFFUSION_CPU_ISA=" + std::string(wanted) +
                           " cannot be used on this machine; possible values: " + known);
}

}  // namespace

const IsaKernels& isa_kernels() {
  static const IsaKernels& chosen = choose();
  return chosen;
}

}  // namespace vllm_diffusion
