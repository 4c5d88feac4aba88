# SPDX-License-Identifier: Apache-2.0
"""Asks a policy and checks the shapes and types of its answer; nothing here reads values."""

from __future__ import annotations

import torch

from vllm.v1.diffusion.policies.base import (
    Boost,
    CanvasView,
    PositionStats,
    Redrawn,
    Rewrite,
    UnmaskingPolicy,
)

_REDRAWN = {
    "tokens": torch.int64,
    "masked": torch.bool,
    "source": torch.int64,
    "written": torch.bool,
    "confidence": torch.float32,
}
"""What a redrawn block consists of."""


def checked_boost(policy: UnmaskingPolicy, stats: PositionStats, canvas: CanvasView) -> Boost:
    """Asks a policy what to add to logits.

    Raises:
        ValueError: It returned another type than it must, or other shapes.
    """
    boost = policy.boost(stats, canvas)
    if not isinstance(boost, Boost):
        raise ValueError(f"boost must be a Boost, not {type(boost).__name__}.")
    shape = (*canvas.masked.shape, boost.ids.shape[-1])
    _check("boost's ids", boost.ids, shape, torch.int64)
    _check("boost's growth", boost.growth, shape, torch.float32)
    return boost


def checked_select(policy: UnmaskingPolicy, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
    """Asks a policy what to unmask.

    Raises:
        ValueError: It returned another type than it must, or another shape.
    """
    unmask = policy.select(stats, canvas)
    _check("unmask", unmask, canvas.masked.shape, torch.bool)
    return unmask


def checked_rewrite(policy: UnmaskingPolicy, stats: PositionStats, canvas: CanvasView) -> Rewrite:
    """Asks a policy what to write again.

    Raises:
        ValueError: It returned another type than it must, or other shapes.
    """
    rewrite = policy.rewrite(stats, canvas)
    if not isinstance(rewrite, Rewrite):
        raise ValueError(f"rewrite must be a Rewrite, not {type(rewrite).__name__}.")
    _check("rewrite's positions", rewrite.positions, canvas.masked.shape, torch.bool)
    if rewrite.remask is not None:
        _check("remask", rewrite.remask, canvas.masked.shape, torch.bool)
    if rewrite.fill is not None:
        _check("rewrite's fill", rewrite.fill, canvas.masked.shape[:1], torch.int64)
    if rewrite.unfinished is not None:
        _check("unfinished", rewrite.unfinished, canvas.masked.shape[:1], torch.bool)
    return rewrite


def checked_redraw(policy: UnmaskingPolicy, stats: PositionStats, canvas: CanvasView) -> Redrawn:
    """Asks a policy what blocks are to be.

    Raises:
        ValueError: It returned another type than it must, or other shapes.
    """
    redrawn = policy.redraw(stats, canvas)
    if not isinstance(redrawn, Redrawn):
        raise ValueError(f"redraw must be a Redrawn, not {type(redrawn).__name__}.")
    for name, dtype in _REDRAWN.items():
        _check(f"redraw's {name}", getattr(redrawn, name), canvas.masked.shape, dtype)
    if redrawn.length is not None:
        _check("redraw's length", redrawn.length, canvas.masked.shape[:1], torch.int64)
    _check("redraw's unfinished", redrawn.unfinished, canvas.masked.shape[:1], torch.bool)
    return redrawn


def _check(name: str, value: object, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if not isinstance(value, torch.Tensor) or value.shape != shape or value.dtype != dtype:
        got = (
            f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        )
        raise ValueError(f"{name} must be {dtype} {list(shape)}, not {got}.")
