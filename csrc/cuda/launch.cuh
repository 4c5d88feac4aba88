// Launches close behind one another: a kernel's blocks are in place when the one before it ends.
#pragma once

#include <cuda_runtime.h>

namespace vllm_diffusion {

inline cudaError_t device_attribute(cudaDeviceAttr which, int& value) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  return error == cudaSuccess ? cudaDeviceGetAttribute(&value, which, device) : error;
}

// Before Hopper the kernel starts when the one before it has ended. It waits by itself for what it
// reads: cudaGridDependencySynchronize.
template <typename... Parameters, typename... Arguments>
cudaError_t launch_close_behind(void (*kernel)(Parameters...), dim3 blocks, unsigned threads,
                                size_t shared, cudaStream_t stream, Arguments... arguments) {
  int major = 0;
  const cudaError_t error = device_attribute(cudaDevAttrComputeCapabilityMajor, major);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = major >= 9 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

}  // namespace vllm_diffusion
