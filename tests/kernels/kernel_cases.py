# SPDX-License-Identifier: Apache-2.0
"""Inputs for the kernel tests, and the comparison with the reference."""

from typing import Any

import torch
from torch import Tensor

from vllm.v1.diffusion.kernels import reference
from vllm.v1.diffusion.kernels.row_stats import RowStats, row_stats
from vllm.v1.diffusion.kernels.tolerances import TOLERANCES

STATS = ("sample_prob", "top1", "top2", "entropy", "lse")


def make_logits(
    rows: int, vocab: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 4.0
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, vocab, generator=generator) * scale).to(dtype)


def row_arguments(
    logits: Tensor,
    temperature: float | list[float] = 0.0,
    stat_temperature: float | list[float] = 1.0,
    seed: int = 1,
) -> dict[str, Any]:
    """Per-row arguments for `logits`; lists are repeated to its length."""
    rows = logits.shape[0]

    def column(value: float | list[float]) -> Tensor:
        values = value if isinstance(value, list) else [value]
        return torch.tensor([values[i % len(values)] for i in range(rows)], device=logits.device)

    generator = torch.Generator().manual_seed(seed)
    low, high = -(2**63), 2**63 - 1
    return {
        "temperature": column(temperature).float(),
        "stat_temperature": column(stat_temperature).float(),
        "seed": torch.randint(low, high, (rows,), generator=generator).to(logits.device),
        "offset": torch.randint(low, high, (rows,), generator=generator).to(logits.device),
    }


def assert_stats(
    actual: RowStats, expected: tuple[Tensor, ...], note: str = "", operator: str = "row_stats"
) -> None:
    """Ids equal, numbers within the tolerance table."""
    wanted = RowStats(*expected)
    got, want = actual.sample, wanted.sample
    assert got.dtype == torch.int64
    assert torch.equal(got, want), f"{note} sample: {got.tolist()} is not {want.tolist()}"
    for name in STATS:
        got, want = getattr(actual, name), getattr(wanted, name)
        assert got.dtype == torch.float32
        tolerance = TOLERANCES[operator][name]
        torch.testing.assert_close(
            got.double(),
            want.double(),
            rtol=tolerance.relative,
            atol=tolerance.absolute,
            equal_nan=True,
            msg=lambda text, name=name: f"{note} {operator}.{name}: {text}",  # type: ignore[misc]
        )


def check_row_stats(
    logits: Tensor,
    arguments: dict[str, Any],
    active: Tensor | None = None,
    banned: int = -1,
    note: str = "",
) -> RowStats:
    """Runs the kernel, compares it with the float64 reference and returns what it gave."""
    actual = row_stats(logits, **arguments, active=active, banned=banned)
    expected = reference.row_stats(logits, **arguments, active=active, banned=banned)
    assert_stats(actual, expected, note)
    return actual
