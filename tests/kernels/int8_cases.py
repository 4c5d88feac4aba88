# SPDX-License-Identifier: Apache-2.0
"""One int8 linear layer at a time, as upstream builds and calls it, against float64.

Run as a program in a process of its own: oneDNN reads its limit of instruction sets once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOLERANCES = {"float32": 1e-6, "bfloat16": 5e-3, "float16": 6e-4}
"""Relative, of the norm of a layer's output."""


@dataclass(frozen=True)
class Case:
    """A layer and its input."""

    rows: int
    inputs: int
    outputs: int
    dtype: str = "float32"
    symmetric: bool = True
    static: bool = False
    widths: tuple[int, ...] = ()
    """Of a fused layer that has a scale for each of its parts."""
    bias: bool = False
    values: str = "normal"


def cases() -> Iterator[Case]:
    """Sizes, kinds of quantisation, and the numbers that saturate most."""
    for rows in (1, 2, 37):
        for inputs, outputs in ((1, 1), (2, 3), (64, 64), (63, 61), (512, 96)):
            yield Case(rows, inputs, outputs)
    for values in ("extreme", "ones", "uniform"):
        yield Case(5, 128, 64, values=values)
    for dtype in DTYPES:
        for symmetric in (True, False):
            for static in (True, False):
                yield Case(7, 96, 48, dtype, symmetric, static, bias=static)
                yield Case(7, 96, 48, dtype, symmetric, static, widths=(32, 16), bias=True)
    yield Case(3, 5000, 70)
    for dtype in DTYPES:
        for rows in (1, 37, 200):
            yield Case(rows, 128, 96, dtype, bias=rows > 1)


def numbers(case: Case, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations ``[rows, inputs]`` and int8 weights ``[outputs, inputs]``."""
    x = torch.randn(case.rows, case.inputs, generator=generator)
    weight = torch.randint(-128, 128, (case.outputs, case.inputs), generator=generator)
    if case.values == "extreme":
        x, weight = x.sign(), torch.where(weight < 0, -128, 127)
    elif case.values == "ones":
        x, weight = torch.ones_like(x), torch.full_like(weight, 127)
    elif case.values == "normal":
        weight = (torch.randn(weight.shape, generator=generator) * 40).round().clamp(-128, 127)
    return x.to(DTYPES[case.dtype]), weight.to(torch.int8)


def build(case: Case, weight: torch.Tensor, generator: torch.Generator) -> tuple[Any, torch.nn.Module]:
    """The kernel that upstream chooses, and a layer that it has processed."""
    from vllm.model_executor.kernels.linear import init_int8_linear_kernel

    def fixed(value: torch.Tensor) -> torch.nn.Parameter:
        return torch.nn.Parameter(value, requires_grad=False)

    layer = torch.nn.Module()
    layer.logical_widths = list(case.widths) or [case.outputs]  # type: ignore[assignment]
    scales = (len(case.widths),) if case.widths else (case.outputs, 1)
    layer.weight = fixed(weight.clone())
    layer.weight_scale = fixed(torch.rand(scales, generator=generator) * 0.01 + 1e-3)
    layer.input_scale = fixed(torch.tensor(0.03)) if case.static else None  # type: ignore[assignment]
    layer.input_zero_point = None  # type: ignore[assignment]
    if case.static and not case.symmetric:
        layer.input_zero_point = fixed(torch.tensor(-17, dtype=torch.int32))
    layer.azp_adj = None  # type: ignore[assignment]
    layer.bias = fixed(torch.randn(case.outputs, generator=generator).to(DTYPES[case.dtype]))
    kernel = init_int8_linear_kernel(not case.widths, case.static, case.symmetric, "test")
    torch.set_default_dtype(DTYPES[case.dtype])
    try:
        kernel.process_weights_after_loading(layer)
    finally:
        torch.set_default_dtype(torch.float32)
    return kernel, layer


def reference(case: Case, layer: Any, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The layer in float64, from activations that upstream rounds.

    Raises:
        AssertionError: an activation is not rounded to its neighbour.
    """
    from vllm import _custom_ops as ops

    rounded, scale, zero = ops.onednn_scaled_int8_quant(
        x, layer.input_scale, layer.input_zero_point, case.symmetric
    )
    shifted = rounded.double() - (0 if zero is None else zero.double())
    inside = (rounded > -128) & (rounded < 127)
    apart = (shifted * scale.double() - x.double()).abs() / scale.double()
    assert (apart[inside] < 0.501).all()
    scales = layer.weight_scale.double().flatten()
    product = (shifted * scale.double()) @ (weight.double() * scales[:, None]).T
    return product + layer.bias.double() if case.bias else product  # type: ignore[no-any-return]


def error(case: Case) -> tuple[str, float]:
    """The chosen kernel's name, and how far its output is from float64's, relative to its norm."""
    generator = torch.Generator().manual_seed(case.rows + case.inputs)
    x, weight = numbers(case, generator)
    kernel, layer = build(case, weight, generator)
    got = kernel.apply_weights(layer, x, layer.bias if case.bias else None)
    assert got.shape == (case.rows, case.outputs) and got.dtype == x.dtype
    want = reference(case, layer, weight, x)
    return type(kernel).__name__, float((got.double() - want).norm() / want.norm())


def upstreams(case: Case) -> float:
    """The error of the kernel that upstream would choose."""
    from vllm.model_executor.kernels import linear
    from vllm.platforms import PlatformEnum

    kernels = linear._POSSIBLE_INT8_KERNELS
    ours = kernels[PlatformEnum.CPU]
    kernels[PlatformEnum.CPU] = [linear.CPUInt8ScaledMMLinearKernel]
    try:
        return error(case)[1]
    finally:
        kernels[PlatformEnum.CPU] = ours


def main() -> None:
    """Prints every case with the kernel that it took and its error, and what upstream's does, as JSON."""
    from vllm.model_executor.kernels.linear.scaled_mm import cpu_int8

    cpu_int8._SLICE = 1 << 10  # Several slices a layer.
    found = {
        "saturates": cpu_int8.products_saturate(),
        "layers": [(asdict(case), *error(case)) for case in cases()],
        "upstreams": upstreams(Case(5, 127, 63, values="ones")),  # No size for AMX.
    }
    print(json.dumps(found), file=sys.stdout)


if __name__ == "__main__":
    main()
