# SPDX-License-Identifier: Apache-2.0
"""Matrix products of few rows, and the norm between them: ``torch.ops.vllm_diffusion``.

Such a product takes as long as reading its weights; ``skinny_linear`` reads them at the rate of the
memory, and begins while the kernels before it still run.
"""

import torch
from torch import Tensor

from vllm.v1.diffusion.kernels import library as _library  # noqa: F401  loads the compiled operators

__all__ = ["MAX_COLUMNS", "MAX_OUTPUTS", "MAX_ROWS", "TILE_ROWS", "add_rms_norm", "skinny_linear"]

MAX_ROWS = 64
"""Most rows of ``input``."""
MAX_OUTPUTS = 1 << 20
"""Most rows of ``weight``."""
TILE_ROWS = 64
"""Rows of ``weight`` for which ``arrived`` has an entry."""
MAX_COLUMNS = 8192
"""Most columns of a norm."""


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


def add_rms_norm(input: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> None:
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

    Raises:
        RuntimeError: for a wrong shape, dtype, device or address.
    """
    torch.ops.vllm_diffusion.add_rms_norm(input, residual, weight, epsilon)


@torch.library.register_fake("vllm_diffusion::skinny_linear")  # type: ignore[untyped-decorator]
def _skinny_linear_fake(
    input: Tensor, weight: Tensor, bias: Tensor | None, arrived: Tensor, gated: bool
) -> Tensor:
    rows = weight.shape[0] // 2 if gated else weight.shape[0]
    return input.new_empty(input.shape[0], rows)


@torch.library.register_fake("vllm_diffusion::add_rms_norm")  # type: ignore[untyped-decorator]
def _add_rms_norm_fake(input: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> None:
    return None
