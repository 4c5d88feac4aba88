# SPDX-License-Identifier: Apache-2.0
"""Finds unmasking policies by name."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.v1.diffusion.kernels.rules import Rule
from vllm.v1.diffusion.policies.adaptive.confidence_threshold import ConfidenceThreshold
from vllm.v1.diffusion.policies.adaptive.credit import Credit
from vllm.v1.diffusion.policies.adaptive.edit import Edit
from vllm.v1.diffusion.policies.adaptive.entropy_bounded import EntropyBounded
from vllm.v1.diffusion.policies.adaptive.factor import Factor
from vllm.v1.diffusion.policies.adaptive.hierarchical import Hierarchical
from vllm.v1.diffusion.policies.adaptive.low_confidence_dynamic import LowConfidenceDynamic
from vllm.v1.diffusion.policies.adaptive.sub_blocks import SubBlocks
from vllm.v1.diffusion.policies.adaptive.threshold import Threshold
from vllm.v1.diffusion.policies.base import ScheduledPolicy, UnmaskingPolicy
from vllm.v1.diffusion.policies.scheduled.entropy import Entropy
from vllm.v1.diffusion.policies.scheduled.linear_time import LinearTimePolicy
from vllm.v1.diffusion.policies.scheduled.low_confidence_static import LowConfidenceStatic
from vllm.v1.diffusion.policies.scheduled.maskgit_plus import MaskgitPlus
from vllm.v1.diffusion.policies.scheduled.origin import Origin
from vllm.v1.diffusion.policies.scheduled.random import Random
from vllm.v1.diffusion.policies.scheduled.sequential import Sequential
from vllm.v1.diffusion.policies.scheduled.topk_margin import TopkMargin

ENTRY_POINT_GROUP = "vllm.unmasking_policies"

_BUILT_IN: dict[str, type[UnmaskingPolicy]] = {
    "confidence_threshold": ConfidenceThreshold,
    "credit": Credit,
    "edit": Edit,
    "entropy": Entropy,
    "entropy_bounded": EntropyBounded,
    "low_confidence_dynamic": LowConfidenceDynamic,
    "low_confidence_static": LowConfidenceStatic,
    "factor": Factor,
    "hierarchical": Hierarchical,
    "maskgit_plus": MaskgitPlus,
    "origin": Origin,
    "random": Random,
    "sequential": Sequential,
    "sub_blocks": SubBlocks,
    "threshold": Threshold,
    "topk_margin": TopkMargin,
}

_SCHEDULED = {
    ScheduledPolicy: (Rule.GIVEN, Rule.STATIC, Rule.SEQUENTIAL),
    LinearTimePolicy: (Rule.GIVEN,),
}
"""Policies that say how many steps a block takes, and the rules that keep to it."""


def built_in_policies() -> list[str]:
    """The names of the policies that come with this package."""
    return sorted(_BUILT_IN)


@cache
def built_in_parameters() -> frozenset[str]:
    """The fields of ``DiffusionParams`` that some built-in policy reads, and others may not."""
    return frozenset(name for policy in _BUILT_IN.values() for name in policy.parameters)


def known_policies() -> list[str]:
    """The names of the built-in policies and of those that packages register."""
    registered = (e.name for e in entry_points(group=ENTRY_POINT_GROUP))
    return sorted({*_BUILT_IN, *registered})


@cache
def get_policy(name: str) -> UnmaskingPolicy:
    """The policy of that name, or of that dotted path.

    Raises:
        ValueError: No such policy, or its package cannot be imported.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]()
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        if entry_point.name == name:
            return _make(name, entry_point.value, entry_point.load)
    if "." in name:
        return _make(name, name, lambda: resolve_obj_by_qualname(name.replace(":", ".")))
    raise ValueError(
        f"Unknown diffusion_algorithm={name!r}. Known: {', '.join(known_policies())}; or "
        "a dotted path to a class."
    )


def check_importable(name: str, served: str) -> None:
    """Refuses a dotted path by which a request would have a module imported.

    Args:
        name: What a request asks for.
        served: The engine's own algorithm, whose module its operator chose.

    Raises:
        ValueError: The module is neither that nor imported already.
    """
    module = name.replace(":", ".").rpartition(".")[0]
    if module and name != served and module not in sys.modules and name not in known_policies():
        raise ValueError(
            f"diffusion_algorithm={name!r} names a module that is not imported: import it first, serve "
            "it with --diffusion-config, or register it as an entry point."
        )


def _make(name: str, where: str, load: Callable[[], Any]) -> UnmaskingPolicy:
    try:
        cls = load()
    except Exception as error:
        raise ValueError(f"diffusion_algorithm={name!r} ({where}) cannot be loaded: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, UnmaskingPolicy)):
        raise ValueError(f"diffusion_algorithm={name!r} ({where}) is no UnmaskingPolicy.")
    try:
        policy = cls()
    except Exception as error:
        raise ValueError(f"diffusion_algorithm={name!r} ({where}) cannot be made: {error}") from error
    if (fault := _fault(policy)) is not None:
        raise ValueError(f"diffusion_algorithm={name!r} ({where}) {fault}.")
    return policy


def _fault(policy: UnmaskingPolicy) -> str | None:
    """Why a policy of another package cannot be used; None if it can."""
    cls = type(policy)
    kept = next((base for base in _SCHEDULED if cls.steps_left is base.steps_left), None)
    if kept is not None:
        # The engine plans by the schedule, so it must be the one that is kept.
        if cls.select is not kept.select:
            return f"is a {kept.__name__} and must leave select() to it: score() ranks the positions"
        if policy.rule not in _SCHEDULED[kept]:
            return f"is a {kept.__name__}, and rule {policy.rule.name} keeps no schedule"
    elif cls.steps_left is not UnmaskingPolicy.steps_left:
        return "must not override steps_left(); derive from ScheduledPolicy to be planned ahead"
    elif policy.rule is Rule.GIVEN and cls.select is UnmaskingPolicy.select:
        return "has no select()"
    wrong = [f"{k}={v!r}" for k, v in policy.defaults.items() if not _is_number(v)]
    if wrong:
        return f"has defaults that are no numbers: {', '.join(wrong)}"
    known = built_in_parameters() | policy.defaults.keys()
    if unknown := sorted(policy.parameters - known):
        return (
            f"has parameters that no request can set: {', '.join(unknown)}. Numbers of its own go into "
            f"defaults; others are {', '.join(sorted(known))}"
        )
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
