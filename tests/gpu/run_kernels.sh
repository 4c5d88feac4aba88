#!/usr/bin/env bash
# Builds the CUDA kernels with the nvcc at hand against the torch of $PYTHON (default python3) and
# runs their tests, compute-sanitizer and benchmarks. Needs no installed vllm and no network.
#
#   tests/gpu/run_kernels.sh [build] [tests] [sanitize] [bench]     (default: all four)
#
# Work folder: $KERNEL_WORK (default build/gpu-kernels; kept, so that a second call only rebuilds).
# CUDAARCHS="90a-real" builds for one GPU only.
set -euo pipefail
cd "$(dirname "$0")/../.."
python="${PYTHON:-python3}"
work="${KERNEL_WORK:-$PWD/build/gpu-kernels}"
parts="${*:-build tests sanitize bench}"
site="$work/site"
export PYTHONPATH="$site"
export PYTHONUNBUFFERED=1

if [[ " $parts " == *" build "* ]]; then
  cmake -G Ninja -S . -B "$work/cmake" -DVLLM_TARGET_DEVICE=cuda -DCMAKE_BUILD_TYPE=Release \
    -DPython_EXECUTABLE="$(command -v "$python")"
  cmake --build "$work/cmake"
  cmake --install "$work/cmake" --prefix "$site" > /dev/null
  # A vllm package with nothing in it but the kernels' modules.
  mkdir -p "$site/vllm/v1/diffusion"
  touch "$site/vllm/__init__.py" "$site/vllm/v1/__init__.py" "$site/vllm/v1/diffusion/__init__.py"
  cp -r vllm/v1/diffusion/kernels "$site/vllm/v1/diffusion/"
fi

"$python" - <<'PY'
import torch
from vllm.v1.diffusion.kernels import library
name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
print(f"torch {torch.__version__}, {name}, kernels loaded by {library.__file__}")
PY

if [[ " $parts " == *" tests "* ]]; then
  # The others are of the layers, which need the installed fork.
  tests=()
  for name in row_stats row_stats_draw merge_row_stats unmask block_causal skinny_linear eight_bits rope noise timetable cuda_only opcheck; do
    tests+=("tests/kernels/test_$name.py")
  done
  "$python" -m pytest "${tests[@]}" -q -p no:cacheprovider -k "cuda" --durations=5
fi
if [[ " $parts " == *" sanitize "* ]]; then
  if command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck; do
      PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 300 compute-sanitizer --tool "$tool" \
        --error-exitcode 1 --kernel-name kns=vllm_diffusion \
        "$python" tests/gpu/sanitize_kernels.py
    done
  else
    echo "compute-sanitizer is not on PATH: skipped"
  fi
fi
if [[ " $parts " == *" bench "* ]]; then
  "$python" benchmarks/kernels/row_stats.py --device cuda
  "$python" benchmarks/kernels/unmask.py --device cuda
  "$python" benchmarks/kernels/attention.py
  "$python" benchmarks/kernels/skinny_linear.py
fi
