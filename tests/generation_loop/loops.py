# SPDX-License-Identifier: Apache-2.0
"""Loops that the tests name by dotted path."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vllm.v1.diffusion.loops.block import BlockDiffusionLoop
from vllm.v1.generation_loop import GenerationLoop


class OldLoop(GenerationLoop):
    """Written for an interface that is gone."""

    api_version = 0


class BrokenLoop(GenerationLoop):
    """Cannot be made."""

    def __init__(self) -> None:
        raise RuntimeError("no licence for this loop")


class WitnessLoop(BlockDiffusionLoop):
    """Block diffusion that leaves a mark in each process where it is called."""

    def _mark(self, method: str) -> None:
        folder = os.environ.get("WITNESS_FOLDER")
        if folder:
            Path(folder, f"{method}-{os.getpid()}").touch()

    def validate_params(self, *args: Any) -> None:
        """Marks the front end."""
        self._mark("validate_params")
        super().validate_params(*args)

    def step(self, core: Any) -> Any:
        """Marks the engine core."""
        self._mark("step")
        return super().step(core)

    def forward(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Marks the worker, where the live module is at hand."""
        assert next(model.parameters()).numel() > 0
        assert inputs["input_ids"].shape == inputs["positions"].shape
        self._mark("forward")
        return super().forward(model, inputs)


class FragileLoop(BlockDiffusionLoop):
    """Fails in the worker while a file exists."""

    own_parameters = frozenset({"mood"})

    def validate_params(self, params: Any, vllm_config: Any) -> None:
        """Reads a parameter as if it were always a string."""
        super().validate_params(params, vllm_config)
        (params.extra_args or {}).get("mood", "").strip()

    def forward(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Fails, or calls the model."""
        if Path(os.environ["FRAGILE_WHILE"]).exists():
            raise OSError("the moon is full")
        return super().forward(model, inputs)
