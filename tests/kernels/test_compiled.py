# SPDX-License-Identifier: Apache-2.0
"""A folder of compiled functions that CPUs with other instruction sets share gives each its own code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vllm.v1.diffusion.layers import compiled

_FUNCTION = """
import runpy
import sys
import torch
from torch._dynamo.utils import counters

def product(x):
    return torch.nn.functional.silu(x) * 2

runpy.run_path(sys.argv[1])["compile_for_this_cpu"]()
x = torch.linspace(1, 2, 1024)
torch.testing.assert_close(torch.compile(product)(x), product(x))
print("found", counters["inductor"]["fxgraph_cache_hit"])
"""


def _found(folder: Path, capability: str) -> int:
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder), "ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run(
        [sys.executable, "-c", _FUNCTION, compiled.__file__],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split("found ")[1])


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="needs two instruction sets to choose from"
)
def test_code_for_another_instruction_set_is_not_taken(tmp_path: Path) -> None:
    assert _found(tmp_path, "avx512") == 0
    assert _found(tmp_path, "avx2") == 0
    assert _found(tmp_path, "avx512") == 1
