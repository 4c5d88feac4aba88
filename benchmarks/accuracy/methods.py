# SPDX-License-Identifier: Apache-2.0
"""Ways of decoding, each with the settings that trade accuracy for speed.

A method that a request can choose gets its row here: :func:`sweep` names the parameter that is varied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.v1.diffusion.request.params import DiffusionParams

THRESHOLDS = (0.99, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.35, 0.2)


@dataclass(frozen=True)
class Method:
    """A way of decoding.

    Attributes:
        settings: What a request says, by the name of the setting, the most careful one first.
        loop: The generation loop that the engine must be started with; None: any.
    """

    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    loop: str | None = None

    def requests(self) -> dict[str, DiffusionParams]:
        """The settings as parameters, checked."""
        from vllm import DiffusionParams  # type: ignore[attr-defined]  # lazy

        return {name: DiffusionParams(**setting) for name, setting in self.settings.items()}


def sweep(parameter: str, values: Sequence[Any], loop: str | None = None, **fixed: Any) -> Method:
    """A method whose settings differ in one parameter."""
    return Method({f"{parameter} {value}": {**fixed, parameter: value} for value in values}, loop)


def _several_blocks() -> Method:
    """Thresholds, and shares of a block from which the next one opens."""
    settings = {
        f"threshold {threshold}, add {add}": {
            "algorithm": "multi_block",
            "threshold": threshold,
            "add_block_threshold": add,
        }
        for add in (0.8, 0.5, 0.1)
        for threshold in THRESHOLDS
    }
    return Method(settings, "multi_block_diffusion")


def _elastic(block: int) -> Method:
    """Fixed schedules, each with fewer and fewer masked positions computed in a step."""
    settings = {
        f"steps {steps}, candidates {candidates}": {
            "algorithm": "low_confidence_static",
            "steps": steps,
            "rows": "elastic",
            "row_candidates": candidates,
        }
        for steps in (block, block // 2, block // 4)
        for candidates in (16, 12, 8, 4)
    }
    return Method(settings)


def _steps(block: int) -> list[int]:
    return [block >> shift for shift in range(block.bit_length())]


def methods(block: int) -> dict[str, Method]:
    """Methods of a block-causal model with blocks of ``block`` tokens, by name."""
    whole: dict[str, Any] = {"steps": block}
    return {
        "static": sweep("steps", _steps(block), algorithm="low_confidence_static"),
        "elastic": _elastic(block),
        "elastic_dynamic": sweep(
            "threshold", THRESHOLDS, algorithm="low_confidence_dynamic", rows="elastic", **whole
        ),
        "sequential": sweep("steps", _steps(block), algorithm="sequential"),
        "dynamic": sweep("threshold", THRESHOLDS, algorithm="low_confidence_dynamic", **whole),
        "entropy_bounded": sweep(
            "entropy_bound", (0.01, 0.05, 0.1, 0.2, 0.35, 0.7, 1.4, 3.0, 6.0), algorithm="entropy_bounded"
        ),
        "factor": sweep("factor", (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0), algorithm="factor"),
        "hierarchical": sweep("threshold", THRESHOLDS[:8], algorithm="hierarchical", low_threshold=0.15),
        "credit": sweep("threshold", THRESHOLDS, algorithm="credit"),
        "local_leap": sweep("anchor_threshold", THRESHOLDS[1:8], algorithm="local_leap", **whole),
        "multi_block": _several_blocks(),
        "self_speculation": sweep(
            "threshold", THRESHOLDS[:8], "verified_block_diffusion", algorithm="self_speculation", **whole
        ),
        "p2": sweep("steps", _steps(block), algorithm="p2"),
    }


def chosen(names: Sequence[str], block: int, loop: str | None = None) -> dict[str, Method]:
    """The named methods, or all that an engine of some loop takes.

    Args:
        names: Their names; none for all.
        block: Tokens per block.
        loop: The engine's generation loop; None for the model's own.

    Raises:
        ValueError: There is no method of a name, or it needs another loop.
    """
    known = methods(block)
    for name in names:
        if name not in known:
            raise ValueError(f"method is {name!r}, but has to be one of {', '.join(known)}")
        if (needed := known[name].loop) not in (None, loop):
            raise ValueError(f"method is {name!r}, which needs --loop {needed}")
    fit = [name for name, method in known.items() if method.loop in (None, loop)]
    return {name: known[name] for name in names or fit}
