# SPDX-License-Identifier: Apache-2.0
"""Inputs for the tests of skinny_linear, and the comparison with the reference."""

from typing import NamedTuple

import torch
from torch import Tensor

from vllm.v1.diffusion.kernels import reference
from vllm.v1.diffusion.kernels import skinny_linear as linear_ops
from vllm.v1.diffusion.kernels.tolerances import TOLERANCES


class Case(NamedTuple):
    """A call's arguments."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    gated: bool

    @property
    def arrived(self) -> Tensor:
        return counters(self.weight)

    def arguments(self) -> tuple[Tensor | bool | None, ...]:
        return self.input, self.weight, self.bias, self.arrived, self.gated

    def run(self) -> Tensor:
        return linear_ops.skinny_linear(self.input, self.weight, self.bias, self.arrived, self.gated)


_COUNTERS: dict[torch.device, Tensor] = {}


def counters(weight: Tensor) -> Tensor:
    """One tensor for all calls of a device: each must leave it as it found it."""
    device = weight.device
    if device not in _COUNTERS:
        _COUNTERS[device] = torch.zeros(4096, dtype=torch.int32, device=device)
    return _COUNTERS[device]


def make_case(
    tokens: int,
    rows: int,
    columns: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
    gated: bool = False,
    bias: bool = False,
    device: str = "cuda",
) -> Case:
    generator = torch.Generator().manual_seed(tokens + rows + columns)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(dtype).to(device)

    weight = draw(rows, columns, scale=columns**-0.5)
    return Case(draw(tokens, columns), weight, draw(rows) if bias else None, gated)


def check(case: Case) -> Tensor:
    """Runs a case; everything is written, and near the reference."""
    out = case.run()
    expected = reference.skinny_linear(case.input, case.weight, case.bias, case.gated)
    assert out.dtype == case.input.dtype
    assert out.shape == expected.shape
    name = str(case.input.dtype).removeprefix("torch.")
    tolerance = TOLERANCES["skinny_linear"][name]
    torch.testing.assert_close(
        out.double(),
        expected,
        rtol=tolerance.relative,
        atol=tolerance.absolute,
        msg=lambda m: f"{case.input.shape} {case.weight.shape} {m}",
    )
    assert not case.arrived.any()
    return out
