# SPDX-License-Identifier: Apache-2.0
"""Inputs for the tests of the 8-bit kernels, and the comparison with the reference."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.kernels.linear_cases import counters
from vllm.v1.diffusion.kernels import reference
from vllm.v1.diffusion.kernels import skinny_linear as linear_ops
from vllm.v1.diffusion.kernels.tolerances import TOLERANCES


class EightBitCase(NamedTuple):
    """What a call of ``skinny_linear_fp8`` gets, but for ``arrived``."""

    input: Tensor
    input_scale: Tensor
    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    dtype: torch.dtype
    gated: bool

    def run(self) -> Tensor:
        arrived = counters(self.weight)
        return linear_ops.skinny_linear_fp8(*self[:5], arrived, self.dtype, self.gated)


def make_eight_bit_case(
    tokens: int,
    rows: int,
    columns: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
    gated: bool = False,
    bias: bool = False,
    per_channel: bool = False,
    per_token: bool = True,
    device: str = "cuda",
) -> EightBitCase:
    """Numbers of a standard deviation of 1 in and out."""
    generator = torch.Generator().manual_seed(tokens + rows + columns)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    # Rows of different sizes, so that a scale of another row would show.
    x = draw(tokens, columns) * (torch.arange(tokens)[:, None] % 3 + 0.5)
    weight = draw(rows, columns) * columns**-0.5 * (torch.arange(rows)[:, None] % 5 + 0.5) / 2
    input_scale = x.abs().amax(-1, keepdim=True) / 448
    weight_scale = weight.abs().amax(-1, keepdim=True) / 448
    if not per_token:
        input_scale = input_scale.amax().reshape(())
    if not per_channel:
        weight_scale = weight_scale.amax().reshape(())
    return EightBitCase(
        reference.to_e4m3(x, input_scale).to(device),
        input_scale.to(device),
        reference.to_e4m3(weight, weight_scale).to(device),
        weight_scale.to(device),
        draw(rows).to(dtype).to(device) if bias else None,
        dtype,
        gated,
    )


def bound(case: EightBitCase, expected: Tensor) -> Tensor:
    """How far each output may be from the reference; if gated, what the errors of gate and up make of it."""
    tolerance = TOLERANCES["skinny_linear_fp8"][str(case.dtype).removeprefix("torch.")]

    def of(x: Tensor) -> Tensor:
        return tolerance.absolute + tolerance.relative * x.abs()

    if not case.gated:
        return of(expected)
    gate, up = reference.skinny_linear_fp8(*case._replace(gated=False)).chunk(2, dim=-1)
    # The activation is nowhere steeper than 1.1.
    return 1.1 * up.abs() * of(gate) + torch.nn.functional.silu(gate).abs() * of(up)


def check_eight_bits(case: EightBitCase) -> Tensor:
    """Runs a case; everything is written, and near the reference."""
    out = case.run()
    expected = reference.skinny_linear_fp8(*case)
    assert out.dtype == case.dtype and out.shape == expected.shape
    far = (out.double() - expected).abs() - bound(case, expected)
    assert (far <= 0).all(), (far.max(), case.input.shape, case.weight.shape)
    # Far nearer on the whole: what is cut off is small.
    error = (out.double() - expected).norm() / expected.norm()
    assert error < (2e-2 if case.gated else 1e-2), (error, case.input.shape, case.weight.shape)
    assert not counters(case.weight).any()
    return out


def same_rows(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    """Bit for bit, rows and scales."""
    assert torch.equal(got[1], expected[1])
    assert torch.equal(got[0].view(torch.uint8), expected[0].view(torch.uint8))


def numbers(rows: int, columns: int, dtype: torch.dtype, device: Any = "cuda") -> Tensor:
    """Rows of very different sizes, among them zeros and one that has a single number."""
    generator = torch.Generator().manual_seed(columns)
    x = torch.randn(rows, columns, generator=generator)
    x *= 10.0 ** torch.randint(-3, 3, (rows, 1), generator=generator)
    x[1:2] = 0.0
    x[2:3, 1:] = 0.0
    return x.to(dtype).to(device)
