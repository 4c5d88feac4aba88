# SPDX-License-Identifier: Apache-2.0
"""The stable door for plug-ins: everything that ``docs/plugins.md`` promises, under one name.

A plug-in imports from here and from nowhere else below ``vllm.v1.diffusion``: the modules behind
these names may move between releases. A name is imported when it is first used, so that registering
a family in every process loads no model code.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.v1.diffusion.config import resolve_diffusion_config
    from vllm.v1.diffusion.families import Family, family_of_architectures, register_family
    from vllm.v1.diffusion.kernels.rules import Rule
    from vllm.v1.diffusion.loops.block import BlockDiffusionLoop
    from vllm.v1.diffusion.loops.diffusion import DiffusionLoop
    from vllm.v1.diffusion.loops.full import FullDiffusionLoop
    from vllm.v1.diffusion.loops.shifted import ShiftedBlockDiffusionLoop
    from vllm.v1.diffusion.modes import ANCHORED, BIDIRECTIONAL, CAUSAL, BlockRule, Mode, Part
    from vllm.v1.diffusion.policies.base import (
        UNMASKING_POLICY_API,
        Boost,
        CanvasView,
        PositionStats,
        Rewrite,
        ScheduledPolicy,
        UnmaskingPolicy,
    )
    from vllm.v1.diffusion.policies.noise import gumbel, uniform
    from vllm.v1.diffusion.policies.parameter import THRESHOLD, Parameter
    from vllm.v1.diffusion.request.decoding import Decoding
    from vllm.v1.diffusion.request.params import DiffusionParams
    from vllm.v1.diffusion.request.resolve import resolve_decoding
    from vllm.v1.diffusion.worker.model_state import DiffusionModelState, FullDiffusionModelState
    from vllm.v1.generation_loop.interface import GENERATION_LOOP_API, GenerationLoop

_HOME = {
    "GENERATION_LOOP_API": "vllm.v1.generation_loop.interface",
    "GenerationLoop": "vllm.v1.generation_loop.interface",
    "BlockDiffusionLoop": "vllm.v1.diffusion.loops.block",
    "FullDiffusionLoop": "vllm.v1.diffusion.loops.full",
    "ShiftedBlockDiffusionLoop": "vllm.v1.diffusion.loops.shifted",
    "DiffusionLoop": "vllm.v1.diffusion.loops.diffusion",
    "Mode": "vllm.v1.diffusion.modes",
    "Part": "vllm.v1.diffusion.modes",
    "BlockRule": "vllm.v1.diffusion.modes",
    "CAUSAL": "vllm.v1.diffusion.modes",
    "BIDIRECTIONAL": "vllm.v1.diffusion.modes",
    "ANCHORED": "vllm.v1.diffusion.modes",
    "DiffusionModelState": "vllm.v1.diffusion.worker.model_state",
    "FullDiffusionModelState": "vllm.v1.diffusion.worker.model_state",
    "CanvasView": "vllm.v1.diffusion.policies.base",
    "Boost": "vllm.v1.diffusion.policies.base",
    "PositionStats": "vllm.v1.diffusion.policies.base",
    "Rewrite": "vllm.v1.diffusion.policies.base",
    "UNMASKING_POLICY_API": "vllm.v1.diffusion.policies.base",
    "THRESHOLD": "vllm.v1.diffusion.policies.parameter",
    "Parameter": "vllm.v1.diffusion.policies.parameter",
    "ScheduledPolicy": "vllm.v1.diffusion.policies.base",
    "UnmaskingPolicy": "vllm.v1.diffusion.policies.base",
    "Rule": "vllm.v1.diffusion.kernels.rules",
    "gumbel": "vllm.v1.diffusion.policies.noise",
    "uniform": "vllm.v1.diffusion.policies.noise",
    "Family": "vllm.v1.diffusion.families",
    "family_of_architectures": "vllm.v1.diffusion.families",
    "register_family": "vllm.v1.diffusion.families",
    "DiffusionParams": "vllm.v1.diffusion.request.params",
    "Decoding": "vllm.v1.diffusion.request.decoding",
    "resolve_decoding": "vllm.v1.diffusion.request.resolve",
    "resolve_diffusion_config": "vllm.v1.diffusion.config",
}

__all__ = [
    "ANCHORED",
    "BIDIRECTIONAL",
    "CAUSAL",
    "GENERATION_LOOP_API",
    "THRESHOLD",
    "UNMASKING_POLICY_API",
    "BlockDiffusionLoop",
    "BlockRule",
    "Boost",
    "CanvasView",
    "Decoding",
    "DiffusionLoop",
    "DiffusionModelState",
    "DiffusionParams",
    "Family",
    "FullDiffusionLoop",
    "FullDiffusionModelState",
    "GenerationLoop",
    "Mode",
    "Parameter",
    "Part",
    "PositionStats",
    "Rewrite",
    "Rule",
    "ScheduledPolicy",
    "ShiftedBlockDiffusionLoop",
    "UnmaskingPolicy",
    "family_of_architectures",
    "gumbel",
    "register_family",
    "resolve_decoding",
    "resolve_diffusion_config",
    "uniform",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
