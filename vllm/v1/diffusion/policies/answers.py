# SPDX-License-Identifier: Apache-2.0
"""Asks a policy and checks what it answers; nothing here looks at values."""

from __future__ import annotations

import torch

from vllm.v1.diffusion.policies.base import CanvasView, Choice, PositionStats, UnmaskingPolicy


def checked_boost(
    policy: UnmaskingPolicy, stats: PositionStats, canvas: CanvasView
) -> tuple[torch.Tensor, torch.Tensor]:
    """Asks a policy what to add to logits.

    Raises:
        ValueError: It returned other shapes or types than it must.
    """
    ids, growth = policy.boost(stats, canvas)
    shape = (*canvas.masked.shape, ids.shape[-1])
    _check("boost's ids", ids, shape, torch.int64)
    _check("boost's growth", growth, shape, torch.float32)
    return ids, growth


def checked_choice(policy: UnmaskingPolicy, stats: PositionStats, canvas: CanvasView) -> Choice:
    """Asks a policy what to unmask.

    Raises:
        ValueError: It returned other shapes or types than it must.
    """
    answer = policy.select(stats, canvas)
    choice = answer if isinstance(answer, Choice) else Choice(answer)
    _check("unmask", choice.unmask, canvas.masked.shape, torch.bool)
    if choice.rewrite is not None:
        if not policy.rewrites:
            raise ValueError("rewrite was given, but the policy does not say that it rewrites.")
        _check("rewrite", choice.rewrite, canvas.masked.shape, torch.bool)
    if choice.unfinished is not None:
        _check("unfinished", choice.unfinished, canvas.masked.shape[:1], torch.bool)
    return choice


def _check(name: str, value: object, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if not isinstance(value, torch.Tensor) or value.shape != shape or value.dtype != dtype:
        got = (
            f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        )
        raise ValueError(f"{name} must be {dtype} {list(shape)}, not {got}.")
