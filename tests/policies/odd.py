# SPDX-License-Identifier: Apache-2.0
"""Policies of another package: one that is well behaved, and others that are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch

from vllm.distributed import get_tensor_model_parallel_rank
from vllm.v1.diffusion.kernels.rules import Rule
from vllm.v1.diffusion.policies import (
    THRESHOLD,
    Boost,
    CanvasView,
    Parameter,
    PositionStats,
    Rewrite,
    UnmaskingPolicy,
)


def install(folder: Path) -> Path:
    """Makes the policies known by their entry points to whoever has the folder on its path."""
    names = {
        "paced": Paced,
        "raises": Raises,
        "lonely": Lonely,
        "wrong_shape": WrongShape,
        "wrong_type": WrongType,
        "forgetful": Forgetful,
        "rebinds": Rebinds,
        "idle": Idle,
        "restless": Restless,
        "overboosts": Overboosts,
        "planner": Planner,
    }
    info = folder / "odd_policies-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-policies\nVersion: 1\n")
    lines = [f"{name} = {__name__}:{cls.__name__}" for name, cls in names.items()]
    (info / "entry_points.txt").write_text("\n".join(["[vllm.unmasking_policies]", *lines, ""]))
    return folder


class Paced(UnmaskingPolicy):
    """Unmasks ``pace`` positions a step from the left; fails where ``pace`` is negative.

    It counts the steps in its memory, and unmasks nothing if the count is not the engine's.
    """

    numbers: ClassVar = {"pace": Parameter("Positions that a step unmasks.", default=2)}

    def make_memory(self, requests: int, width: int, device: torch.device) -> dict[str, torch.Tensor]:
        return {"steps": torch.zeros(requests, dtype=torch.int64, device=device)}

    def select(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        pace = canvas.values["pace"][:, None]
        if min(canvas.host_values["pace"]) < 0:
            raise RuntimeError("a negative pace")
        assert pace.flatten().tolist() == list(canvas.host_values["pace"])
        agrees = canvas.memory["steps"] == canvas.step
        canvas.memory["steps"] += 1
        return canvas.masked & (canvas.masked.cumsum(dim=1) <= pace) & agrees[:, None]


class Raises(UnmaskingPolicy):
    """Fails in its second step."""

    def select(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        if (canvas.step > 0).any():
            raise RuntimeError("on purpose")
        return canvas.masked & (canvas.masked.cumsum(dim=1) <= 1)


class Lonely(UnmaskingPolicy):
    """Fails on the second tensor-parallel rank alone."""

    def select(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        if get_tensor_model_parallel_rank() == 1:
            raise RuntimeError("on this rank")
        return canvas.masked


class WrongShape(UnmaskingPolicy):
    """Returns a column too many."""

    def select(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        return torch.ones(len(canvas.masked), canvas.masked.shape[1] + 1, dtype=torch.bool)


class WrongType(UnmaskingPolicy):
    """Returns numbers."""

    def select(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        return stats.confidence


class Forgetful(UnmaskingPolicy):
    """Makes memory for too few requests."""

    def make_memory(self, requests: int, width: int, device: torch.device) -> dict[str, torch.Tensor]:
        return {"too_few": torch.zeros(1, device=device)}

    def select(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        return canvas.masked


class Rebinds(UnmaskingPolicy):
    """Leaves numbers of another type in its memory."""

    def make_memory(self, requests: int, width: int, device: torch.device) -> dict[str, torch.Tensor]:
        return {"count": torch.zeros(requests, dtype=torch.int64, device=device)}

    def select(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        memory: Any = canvas.memory
        memory["count"] = memory["count"] + 0.5
        return canvas.masked


class Idle(UnmaskingPolicy):
    """Never chooses anything."""

    def select(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        return torch.zeros_like(canvas.masked)


class Restless(UnmaskingPolicy):
    """Unmasks everything and always wants another step, in which it rewrites everything."""

    def select(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        return torch.ones_like(canvas.masked)

    def rewrite(self, stats: PositionStats, canvas: CanvasView) -> Rewrite:
        everything = torch.ones_like(canvas.masked)
        return Rewrite(everything, unfinished=everything[:, 0])


class Overboosts(UnmaskingPolicy):
    """Boosts without saying which ids."""

    rule = Rule.THRESHOLD
    numbers: ClassVar = {"threshold": THRESHOLD}

    def boost(self, stats: PositionStats, canvas: CanvasView) -> Boost:
        return Boost(stats.confidence, stats.confidence)


class Planner(UnmaskingPolicy):
    """Promises the scheduler what it does not keep."""

    def select(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        return canvas.masked & (canvas.masked.cumsum(dim=1) <= 1)

    def steps_left(self, masked: int, step: int, steps: int, block_length: int) -> int | None:
        return 1
