# SPDX-License-Identifier: Apache-2.0
"""Schema, fake implementation and tracing of the operators, and how a missing library is reported."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kernels.attention_cases import make_batch
from tests.kernels.kernel_cases import make_logits, row_arguments
from tests.kernels.unmask_cases import random_state
from vllm.v1.diffusion.kernels import (  # noqa: F401  they register fakes
    library,
    merge_row_stats,
    noise,
    timetable,
    unmask,
)
from vllm.v1.diffusion.kernels.row_stats import row_stats


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_active", [False, True])
def test_row_stats(device: torch.device, dtype: torch.dtype, with_active: bool) -> None:
    logits = make_logits(6, 700, dtype).to(device)
    active = torch.tensor([True, False] * 3, device=device) if with_active else None
    arguments = (*row_arguments(logits, [0.0, 1.0]).values(), active, 5)
    torch.library.opcheck(torch.ops.vllm_diffusion.row_stats.default, (logits, *arguments))


@pytest.mark.parametrize("with_active", [False, True])
def test_merge_row_stats(device: torch.device, with_active: bool) -> None:
    parts = torch.rand(2, 6, 6, device=device)
    active = torch.tensor([True, False] * 3, device=device) if with_active else None
    torch.library.opcheck(torch.ops.vllm_diffusion.merge_row_stats.default, (parts, active, 5))


@pytest.mark.parametrize("with_picked", [False, True])
def test_unmask(device: torch.device, with_picked: bool) -> None:
    state = random_state(0, rules=None if with_picked else [1, 2, 3, 4, 5, 6]).to(device)
    arguments = state.arguments()
    if not with_picked:
        arguments["picked"] = None
    torch.library.opcheck(torch.ops.vllm_diffusion.unmask.default, tuple(arguments.values()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_block_causal(device: torch.device, dtype: torch.dtype) -> None:
    batch = make_batch([(8, 0, 4), (6, 20, 3)], dtype=dtype).to(device)
    arguments = (*batch.arguments(), torch.zeros_like(batch.query))
    torch.library.opcheck(torch.ops.vllm_diffusion.block_causal_attention.default, arguments)


@pytest.mark.parametrize("gumbel", [False, True])
def test_noise(device: torch.device, gumbel: bool) -> None:
    position = torch.arange(12, device=device).view(3, 4)
    seed, step = torch.broadcast_to(position[:, :1], (3, 4)), position.int()
    torch.library.opcheck(torch.ops.vllm_diffusion.noise.default, (seed, position, step, 16, gumbel))


def test_timetable(device: torch.device) -> None:
    step = torch.arange(3, dtype=torch.int32, device=device)
    torch.library.opcheck(torch.ops.vllm_diffusion.timetable.default, (step, step + 4, step / 100))


def test_compiles_into_one_graph(device: torch.device) -> None:
    """Traced with the fakes, without a break, and with the mutations kept."""

    def step(logits: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
        stats = row_stats(logits * 2, **arguments)
        return stats.top1 - stats.top2

    logits = make_logits(5, 300).to(device)
    arguments = row_arguments(logits)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits, arguments), step(logits, arguments))


def test_missing_library_is_told_in_a_sentence(tmp_path: Path) -> None:
    package = tmp_path / "vllm" / "v1" / "diffusion" / "kernels"
    package.mkdir(parents=True)
    for folder in (package, *list(package.parents)[:3]):
        (folder / "__init__.py").touch()
    (package / "library.py").write_text(Path(library.__file__).read_text())
    done = subprocess.run(
        [sys.executable, "-c", "import vllm.v1.diffusion.kernels.library"],
        cwd=tmp_path,
        env={"PATH": "", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0
    assert "The diffusion kernels (vllm/_diffusion_C.abi3.so) are not installed." in done.stderr
