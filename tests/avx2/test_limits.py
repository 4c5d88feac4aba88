# SPDX-License-Identifier: Apache-2.0
"""In ``make test-avx2`` everything that has an instruction set to choose takes AVX2."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(
    os.environ.get("VLLM_DIFFUSION_CPU_ISA") != "avx2", reason="for make test-avx2"
)


def test_torch_is_limited() -> None:
    assert torch.backends.cpu.get_cpu_capability() == "AVX2"
    names = [name for name in vars(torch.cpu) if name.startswith("_is_") and name != "_is_avx2_supported"]
    assert len(names) >= 4
    assert not any(getattr(torch.cpu, name)() for name in names)


def test_upstreams_operators_are_those_for_avx2() -> None:
    importlib.import_module("vllm._custom_ops")
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    names = {Path(name).name for name in loaded if "/vllm/_C" in name}
    assert names == {"_C_AVX2.abi3.so"}


def test_onednn_is_limited() -> None:
    kernel = importlib.import_module("vllm.model_executor.kernels.linear.scaled_mm.cpu_int8")
    assert kernel.products_saturate()


def test_processes_of_a_test_are_limited_too() -> None:
    code = "import torch; print(torch.cpu._is_avx512_supported(), torch.backends.cpu.get_cpu_capability())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "AVX2"]
