# Which GPUs are compiled for: -DCMAKE_CUDA_ARCHITECTURES, else the environment's CUDAARCHS, which
# CMake itself would read only if nothing were set before CUDA is enabled, else
if(NOT CMAKE_CUDA_ARCHITECTURES)
  if(NOT "$ENV{CUDAARCHS}" STREQUAL "")
    set(CMAKE_CUDA_ARCHITECTURES "$ENV{CUDAARCHS}")
  else()
    # SASS for A100 and H100/H200, and PTX that later GPUs compile for themselves.
    set(CMAKE_CUDA_ARCHITECTURES "80-real;90a-real;90-virtual")
  endif()
endif()
