# SPDX-License-Identifier: Apache-2.0
"""``timetable``: the share of masked positions that a step of Dream's timetable unmasks."""

import torch
from torch import Tensor

from vllm.v1.diffusion.kernels import library as _library  # noqa: F401  loads the compiled operators

__all__ = ["timetable"]


def timetable(step: Tensor, steps: Tensor, eps: Tensor) -> Tensor:
    """``1 - t[step + 1] / t[step]``, where t is ``torch.linspace(1, eps, steps + 1)``.

    Every number is rounded as that function rounds it: one unit in the last place decides how many
    positions a step unmasks. A step that lies behind its timetable gives an unspecified number.

    Args:
        step: steps made on the block, int32 ``[R]``.
        steps: steps of the block, int32 ``[R]``.
        eps: where the timetable ends, float32 ``[R]``.

    Returns:
        float32 ``[R]``.

    Raises:
        RuntimeError: for a wrong shape, dtype or device.
    """
    share: Tensor = torch.ops.vllm_diffusion.timetable(step, steps, eps)
    return share


@torch.library.register_fake("vllm_diffusion::timetable")  # type: ignore[untyped-decorator]
def _timetable_fake(step: Tensor, steps: Tensor, eps: Tensor) -> Tensor:
    return torch.empty_like(eps)
