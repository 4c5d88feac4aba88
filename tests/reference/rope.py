# SPDX-License-Identifier: Apache-2.0
"""Rotary embeddings: plain, with positions interpolated, YaRN (arXiv:2309.00071), Llama 3.1's."""

from __future__ import annotations

import math
from typing import Any

import torch


def rotary(position: torch.Tensor, size: int, config: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines ``[positions, size / 2]``, as ``config.json`` asks for them."""
    base = float(config["rope_theta"])
    speed = base ** (-torch.arange(0, size, 2).double() / size)
    scaling = config.get("rope_scaling") or {}
    kind, stretch = scaling.get("rope_type", scaling.get("type", "default")), 1.0
    if kind == "linear":
        speed = speed / scaling["factor"]
    elif kind == "yarn":
        speed, stretch = yarn(speed, size, base, scaling)
    elif kind == "llama3":
        speed = llama3(speed, scaling)
    else:
        assert kind == "default", kind
    angle = position[:, None].double() * speed
    return (angle.cos() * stretch).float(), (angle.sin() * stretch).float()


def llama3(speed: torch.Tensor, scaling: dict[str, Any]) -> torch.Tensor:
    """As Llama 3.1's: slow dimensions are slowed by the factor, fast ones not, those between in part."""
    length = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = length * speed / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return speed * kept + speed / scaling["factor"] * (1 - kept)  # type: ignore[no-any-return]


def yarn(speed: torch.Tensor, size: int, base: float, scaling: dict[str, Any]) -> tuple[torch.Tensor, float]:
    """Fast dimensions keep their speed, slow ones are interpolated, a ramp lies between."""
    length, factor = scaling["original_max_position_embeddings"], scaling["factor"]

    def dimension(turns: float) -> float:
        """The dimension that turns so often over the original length."""
        return size * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))

    first = max(math.floor(dimension(32)), 0)
    last = min(math.ceil(dimension(1)), size - 1)
    ramp = ((torch.arange(size // 2).double() - first) / max(last - first, 1e-3)).clamp(0, 1)
    return speed / factor * ramp + speed * (1 - ramp), 0.1 * math.log(factor) + 1
