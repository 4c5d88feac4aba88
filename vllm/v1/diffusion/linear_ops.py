# SPDX-License-Identifier: Apache-2.0
"""Matrix products of few rows: ``torch.ops.vllm_diffusion``, as in ``ops.py``.

Such a product takes as long as reading its weights; ``skinny_linear`` reads them at the rate of the
memory, and begins while the kernels before it still run.
"""

import torch
from torch import Tensor

from vllm.v1.diffusion import ops as _library  # noqa: F401  loads the compiled operators

__all__ = ["MAX_ROWS", "TILE_ROWS", "skinny_linear"]

MAX_ROWS = 64
"""Most rows of ``input``; ``skinny_layers.py`` says up to how many it pays."""
TILE_ROWS = 64
"""Rows of ``weight`` for which ``arrived`` has an entry."""


def skinny_linear(
    input: Tensor, weight: Tensor, bias: Tensor | None, arrived: Tensor, gated: bool = False
) -> Tensor:
    """``input @ weight.T + bias``, summed in float32, on a GPU of compute capability 9.0.

    The weights are read before the kernels before this one have ended: they must not be written by
    any of them. Equal calls give equal bits, but other numbers of rows are summed in another order.

    Args:
        input: ``[M, K]``, bfloat16 or float16, at most ``MAX_ROWS`` rows, each contiguous and
            beginning at a multiple of 16 bytes.
        weight: ``[N, K]`` of the same dtype, contiguous. K is a multiple of 64, N of 8.
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


@torch.library.register_fake("vllm_diffusion::skinny_linear")  # type: ignore[untyped-decorator]
def _skinny_linear_fake(
    input: Tensor, weight: Tensor, bias: Tensor | None, arrived: Tensor, gated: bool
) -> Tensor:
    rows = weight.shape[0] // 2 if gated else weight.shape[0]
    return input.new_empty(input.shape[0], rows)
