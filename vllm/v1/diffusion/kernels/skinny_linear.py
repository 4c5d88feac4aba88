# SPDX-License-Identifier: Apache-2.0
"""Matrix products of few rows, and the norm between them: ``torch.ops.vllm_diffusion``.

Such a product takes as long as reading its weights; ``skinny_linear`` reads them at the rate of the
memory, and begins while the kernels before it still run.
"""

import torch
from torch import Tensor

from vllm.v1.diffusion.kernels import library as _library  # noqa: F401  loads the compiled operators

__all__ = [
    "MAX_COLUMNS",
    "MAX_OUTPUTS",
    "MAX_QUANTIZED",
    "MAX_ROWS",
    "TILE_ROWS",
    "add_rms_norm",
    "quantize_rows",
    "skinny_linear",
    "skinny_linear_fp8",
]

MAX_ROWS = 64
"""Most rows of ``input``."""
MAX_OUTPUTS = 1 << 20
"""Most rows of ``weight``."""
TILE_ROWS = 64
"""Rows of ``weight`` for which ``arrived`` has an entry."""
MAX_COLUMNS = 8192
"""Most columns of a norm."""
MAX_QUANTIZED = 1 << 15
"""Most columns of the rows that ``quantize_rows`` makes."""


def skinny_linear(
    input: Tensor, weight: Tensor, bias: Tensor | None, arrived: Tensor, gated: bool = False
) -> Tensor:
    """``input @ weight.T + bias``, summed in float32, on a GPU of compute capability 9.0.

    The weights are read before the kernels before this one have ended: they must not be written by
    any of them. Equal calls give equal bits, but other numbers of rows are summed in another order.

    Args:
        input: ``[M, K]``, bfloat16 or float16, at most ``MAX_ROWS`` rows, each contiguous and
            beginning at a multiple of 16 bytes.
        weight: ``[N, K]`` of the same dtype, contiguous. K is a multiple of 64, N of 8, from 16
            to ``MAX_OUTPUTS``.
        bias: ``[N]`` of the same dtype, or None.
        arrived: int32, an entry for every ``TILE_ROWS`` rows of ``weight`` or more. Zeros, and
            again zeros afterwards; calls that may run at the same time must not share it.
        gated: whether the first half of ``weight``'s rows gates the second:
            ``silu(gate) * up``, each rounded to the dtype as if computed by itself. N is then a
            multiple of 16.

    Returns:
        ``[M, N]`` of the same dtype; if gated ``[M, N / 2]``.

    Raises:
        RuntimeError: for a wrong shape, dtype, device, stride or address, or another GPU.
    """
    out: Tensor = torch.ops.vllm_diffusion.skinny_linear(input, weight, bias, arrived, gated)
    return out


def skinny_linear_fp8(
    input: Tensor,
    input_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    arrived: Tensor,
    dtype: torch.dtype,
    gated: bool = False,
) -> Tensor:
    """``input @ weight.T * input_scale * weight_scale + bias`` of 8-bit numbers, like ``skinny_linear``.

    The products are summed as the GPU's matrix unit does it for 8 bits, to about 13 bits of the sum;
    upstream's own products of such weights are summed likewise. The weights and their scales are read
    before the kernels before this one have ended.

    Args:
        input: ``[M, K]``, float8_e4m3fn, at most ``MAX_ROWS`` rows, each contiguous and beginning at
            a multiple of 16 bytes.
        input_scale: float32, M of them or one for all.
        weight: ``[N, K]``, float8_e4m3fn, contiguous. K is a multiple of 128; N as for
            ``skinny_linear``.
        weight_scale: float32, N of them or one for all.
        bias: ``[N]`` of ``dtype``, or None.
        arrived: As for ``skinny_linear``.
        dtype: bfloat16 or float16, the output's.
        gated: As for ``skinny_linear``.

    Returns:
        ``[M, N]`` of ``dtype``; if gated ``[M, N / 2]``.

    Raises:
        RuntimeError: for a wrong shape, dtype, device, stride or address, or another GPU.
    """
    rows = weight.shape[0] // 2 if gated else weight.shape[0]
    out = input.new_empty(input.shape[0], rows, dtype=dtype)
    torch.ops.vllm_diffusion.skinny_linear_fp8(
        input, input_scale, weight, weight_scale, bias, arrived, gated, out
    )
    return out


def quantize_rows(input: Tensor, gated: bool = False) -> tuple[Tensor, Tensor]:
    """Rounds every row to float8_e4m3fn, as multiples of a scale of its own, on a GPU.

    The scale is the row's largest magnitude by 448, at least ``1 / (448 * 512)``: upstream's, bit for bit.

    Args:
        input: ``[M, K]``, bfloat16 or float16, each row contiguous and beginning at a multiple of 16
            bytes. K is a multiple of 8, at most ``MAX_QUANTIZED``; if gated twice that.
        gated: whether ``silu(first half) * second half`` is what is rounded, each of the two
            operations rounded to the dtype before.

    Returns:
        The rows, ``[M, K]`` or ``[M, K / 2]``, and their scales, float32 ``[M, 1]``.

    Raises:
        RuntimeError: for a wrong shape, dtype, stride or address.
    """
    columns = input.shape[1] // 2 if gated else input.shape[1]
    out, scale = _eight_bits(input, columns)
    torch.ops.vllm_diffusion.quantize_rows(input, gated, out, scale.view(-1))
    return out, scale


def _eight_bits(rows: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Room for rows of 8 bits and their scales."""
    out = rows.new_empty(rows.shape[0], columns, dtype=torch.float8_e4m3fn)
    return out, rows.new_empty(rows.shape[0], 1, dtype=torch.float32)


def add_rms_norm(
    input: Tensor, residual: Tensor, weight: Tensor, epsilon: float, quantize: bool = False
) -> tuple[Tensor, Tensor] | None:
    """``residual += input``, then ``input = residual / rms(residual) * weight``, both in place.

    The sum is rounded where it is kept, not where it is normed; the quotient is rounded before it is
    multiplied, as upstream defines it. The next ``skinny_linear`` reads its weights meanwhile.
    ``weight`` is read before the kernels before this one have ended: none of them may write it.

    Args:
        input: ``[M, K]``, bfloat16 or float16, contiguous, written. K is a multiple of 8, at most
            ``MAX_COLUMNS``.
        residual: likewise.
        weight: ``[K]`` of the same dtype. All begin at multiples of 16 bytes.
        epsilon: added to the mean of the squares.
        quantize: whether ``quantize_rows(input)`` of what ``input`` becomes is wanted too.

    Returns:
        What ``quantize_rows`` returns, if it is wanted.

    Raises:
        RuntimeError: for a wrong shape, dtype, device or address.
    """
    if not quantize:
        torch.ops.vllm_diffusion.add_rms_norm(input, residual, weight, epsilon, None, None)
        return None
    out, scale = _eight_bits(input, input.shape[1])
    torch.ops.vllm_diffusion.add_rms_norm(input, residual, weight, epsilon, out, scale.view(-1))
    return out, scale


@torch.library.register_fake("vllm_diffusion::skinny_linear")  # type: ignore[untyped-decorator]
def _skinny_linear_fake(
    input: Tensor, weight: Tensor, bias: Tensor | None, arrived: Tensor, gated: bool
) -> Tensor:
    rows = weight.shape[0] // 2 if gated else weight.shape[0]
    return input.new_empty(input.shape[0], rows)


@torch.library.register_fake("vllm_diffusion::add_rms_norm")  # type: ignore[untyped-decorator]
def _add_rms_norm_fake(
    input: Tensor,
    residual: Tensor,
    weight: Tensor,
    epsilon: float,
    out: Tensor | None,
    scale: Tensor | None,
) -> None:
    return None


@torch.library.register_fake("vllm_diffusion::skinny_linear_fp8")  # type: ignore[untyped-decorator]
def _skinny_linear_fp8_fake(
    input: Tensor,
    input_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    arrived: Tensor,
    gated: bool,
    out: Tensor,
) -> None:
    return None


@torch.library.register_fake("vllm_diffusion::quantize_rows")  # type: ignore[untyped-decorator]
def _quantize_rows_fake(input: Tensor, gated: bool, out: Tensor, scale: Tensor) -> None:
    return None
