# SPDX-License-Identifier: Apache-2.0
"""``noise``: a random number for every position of a canvas, in one kernel."""

import torch
from torch import Tensor

from vllm.v1.diffusion.kernels import library as _library  # noqa: F401  loads the compiled operators

__all__ = ["STEP_BITS", "draw_offset", "noise"]

STEP_BITS = 16
"""Low bits of a random draw's offset, for the step; the token's position is above them."""


def draw_offset(position: Tensor, step: Tensor) -> Tensor:
    """The offset of a draw of one request, int64: another one for every position and step.

    Args:
        position: Positions of tokens, int64.
        step: Steps made on the block, of a shape that fits.
    """
    return (position << STEP_BITS) + step


def noise(seed: Tensor, position: Tensor, step: Tensor, gumbel: bool = False) -> Tensor:
    """A random number for every position, the same on every device and in every batch.

    It is the first word of the Philox4x32-10 block with key ``seed`` and counter
    ``(draw_offset(position, step), 0, 1)``, and with that the word that ``row_stats`` has for a row's
    first group of ids. The three tensors are broadcast to ``[R, W]`` without a copy.

    Args:
        seed: ``[R, 1]`` int64.
        position: ``[R, W]`` int64.
        step: ``[R, 1]`` int32; other integers are converted.
        gumbel: whether it becomes Gumbel noise, ``-log(-log(u))``.

    Returns:
        ``[R, W]`` float64: uniform, strictly between 0 and 1, or Gumbel noise.

    Raises:
        RuntimeError: for a wrong shape, dtype or device.
    """
    seed, position, step = torch.broadcast_tensors(seed, position, step.to(torch.int32))  # type: ignore[no-untyped-call]
    out: Tensor = torch.ops.vllm_diffusion.noise(seed, position, step, STEP_BITS, gumbel)
    return out


@torch.library.register_fake("vllm_diffusion::noise")  # type: ignore[untyped-decorator]
def _noise_fake(seed: Tensor, position: Tensor, step: Tensor, step_bits: int, gumbel: bool) -> Tensor:
    return position.new_empty(position.shape, dtype=torch.float64)
