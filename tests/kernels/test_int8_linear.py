# SPDX-License-Identifier: Apache-2.0
"""Int8 linear layers are float64's on every instruction set that this machine can be limited to."""

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kernels.int8_cases import TOLERANCES
from tests.kernels.limited_cpus import cpu_flags, environment

kernel = pytest.importorskip("vllm.model_executor.kernels.linear.scaled_mm.cpu_int8")


@functools.cache
def layers(isa: str) -> dict[str, Any]:
    """What a process finds whose oneDNN is limited."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.int8_cases"],
        env=environment(ONEDNN_MAX_CPU_ISA=isa),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE", "ALL"])
def test_a_layer_is_float64s(isa: str) -> None:
    found = layers(isa)["layers"]
    assert len(found) > 40
    for case, name, error in found:
        assert name == kernel.ExactInt8LinearKernel.__name__
        assert error < TOLERANCES[case["dtype"]], case


def test_whether_products_saturate_is_what_the_processor_says() -> None:
    assert layers("AVX2")["saturates"]
    assert layers("ALL")["saturates"] != bool({"avx512_vnni", "avx_vnni"} & cpu_flags())


def test_upstreams_kernel_is_still_wrong() -> None:
    """If this fails, upstream has a repair and ``cpu-int8`` can go."""
    assert layers("AVX2")["upstreams"] > 0.5
