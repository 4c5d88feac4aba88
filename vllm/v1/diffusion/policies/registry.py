# SPDX-License-Identifier: Apache-2.0
"""Finds unmasking policies by name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.v1.diffusion.kernels.rules import Rule
from vllm.v1.diffusion.policies.adaptive.confidence_threshold import ConfidenceThreshold
from vllm.v1.diffusion.policies.adaptive.credit import Credit
from vllm.v1.diffusion.policies.adaptive.edit import Edit
from vllm.v1.diffusion.policies.adaptive.entropy_bounded import EntropyBounded
from vllm.v1.diffusion.policies.adaptive.entropy_distance import EntropyDistance
from vllm.v1.diffusion.policies.adaptive.factor import Factor
from vllm.v1.diffusion.policies.adaptive.hierarchical import Hierarchical
from vllm.v1.diffusion.policies.adaptive.local_leap import LocalLeap
from vllm.v1.diffusion.policies.adaptive.low_confidence_dynamic import LowConfidenceDynamic
from vllm.v1.diffusion.policies.adaptive.p2 import P2
from vllm.v1.diffusion.policies.adaptive.renoise import Renoise
from vllm.v1.diffusion.policies.adaptive.threshold import Threshold
from vllm.v1.diffusion.policies.base import (
    RULE_NUMBERS,
    UNMASKING_POLICY_API,
    ScheduledPolicy,
    UnmaskingPolicy,
)
from vllm.v1.diffusion.policies.parameter import Parameter
from vllm.v1.diffusion.policies.parts.d3llm import D3llm
from vllm.v1.diffusion.policies.parts.multi_block import MultiBlock
from vllm.v1.diffusion.policies.parts.sub_blocks import SubBlocks
from vllm.v1.diffusion.policies.redrawing.daedal import Daedal
from vllm.v1.diffusion.policies.redrawing.insert_delete import InsertDelete
from vllm.v1.diffusion.policies.scheduled.entropy import Entropy
from vllm.v1.diffusion.policies.scheduled.least_entropy import LeastEntropy
from vllm.v1.diffusion.policies.scheduled.linear_time import LinearTimePolicy
from vllm.v1.diffusion.policies.scheduled.low_confidence_linear import LowConfidenceLinear
from vllm.v1.diffusion.policies.scheduled.low_confidence_spread import LowConfidenceSpread
from vllm.v1.diffusion.policies.scheduled.low_confidence_static import LowConfidenceStatic
from vllm.v1.diffusion.policies.scheduled.maskgit_plus import MaskgitPlus
from vllm.v1.diffusion.policies.scheduled.origin import Origin
from vllm.v1.diffusion.policies.scheduled.random import Random
from vllm.v1.diffusion.policies.scheduled.sequential import Sequential
from vllm.v1.diffusion.policies.scheduled.topk_margin import TopkMargin
from vllm.v1.diffusion.policies.scheduled.widest_margin import WidestMargin
from vllm.v1.diffusion.policies.speculating.self_speculation import SelfSpeculation, SelfSpeculationEdit

ENTRY_POINT_GROUP = "vllm.unmasking_policies"

_BUILT_IN: dict[str, type[UnmaskingPolicy]] = {
    "confidence_threshold": ConfidenceThreshold,
    "credit": Credit,
    "d3llm": D3llm,
    "daedal": Daedal,
    "edit": Edit,
    "entropy": Entropy,
    "entropy_bounded": EntropyBounded,
    "low_confidence_dynamic": LowConfidenceDynamic,
    "low_confidence_linear": LowConfidenceLinear,
    "low_confidence_spread": LowConfidenceSpread,
    "low_confidence_static": LowConfidenceStatic,
    "factor": Factor,
    "hierarchical": Hierarchical,
    "insert_delete": InsertDelete,
    "local_leap": LocalLeap,
    "maskgit_plus": MaskgitPlus,
    "multi_block": MultiBlock,
    "origin": Origin,
    "entropy_distance": EntropyDistance,
    "least_entropy": LeastEntropy,
    "widest_margin": WidestMargin,
    "p2": P2,
    "random": Random,
    "renoise": Renoise,
    "self_speculation": SelfSpeculation,
    "self_speculation_edit": SelfSpeculationEdit,
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

_RULES_OF_STEPS = (Rule.STATIC, Rule.DYNAMIC, Rule.SEQUENTIAL)
"""Rules that unmask a scheduled number of positions."""


def built_in_policies() -> list[str]:
    """The names of the policies that come with this package."""
    return sorted(_BUILT_IN)


@cache
def built_in_numbers() -> Mapping[str, Parameter]:
    """The numbers of the built-in policies by name: records that several share are one object."""
    return {name: one for policy in _BUILT_IN.values() for name, one in policy.numbers.items()}


def _registered() -> Mapping[str, EntryPoint]:
    """What packages register, by name."""
    return _registered_on(tuple(sys.path))


@cache
def _registered_on(path: tuple[str, ...]) -> Mapping[str, EntryPoint]:
    # Reading the files of all packages takes milliseconds; each request asks.
    found = entry_points(group=ENTRY_POINT_GROUP)
    return {entry_point.name: entry_point for entry_point in reversed(tuple(found))}


def known_policies() -> list[str]:
    """The names of the built-in policies and of those that packages register."""
    return sorted({*_BUILT_IN, *_registered()})


@cache
def get_policy(name: str) -> UnmaskingPolicy:
    """The policy of that name, or of that dotted path.

    Raises:
        ValueError: No such policy, or its package cannot be imported.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]()
    if entry_point := _registered().get(name):
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
    if cls.api_version != UNMASKING_POLICY_API:
        raise ValueError(
            f"diffusion_algorithm={name!r} ({where}) is written for unmasking-policy interface "
            f"{cls.api_version}, this engine has version {UNMASKING_POLICY_API}."
        )
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
        if policy.rule is Rule.GIVEN and cls.score is kept.score:  # type: ignore[attr-defined]
            return f"is a {kept.__name__} and has no score(), which ranks the positions"
    elif cls.steps_left is not UnmaskingPolicy.steps_left:
        return "must not override steps_left(); derive from ScheduledPolicy to be planned ahead"
    return _fault_of_rule(policy, kept or UnmaskingPolicy) or _fault_of_numbers(policy)


def _fault_of_rule(policy: UnmaskingPolicy, kept: type[UnmaskingPolicy]) -> str | None:
    """Whether the kernel and the policy both decide; ``kept`` has the methods that may stay."""
    cls, rule = type(policy), policy.rule
    if rule is Rule.GIVEN:
        return "has no select()" if cls.select is UnmaskingPolicy.select else None
    written = [
        name
        for name in ("select", "rewrite", "score")
        if getattr(cls, name, None) not in (getattr(kept, name, None), getattr(UnmaskingPolicy, name, None))
    ]
    if written:
        return f"has rule {rule.name} beside {written[0]}(), which would never be called"
    if (number := RULE_NUMBERS.get(rule)) is not None and number not in policy.numbers:
        return f"has rule {rule.name}, which reads {number!r}, and no such name in numbers"
    if policy.uses_steps != (rule in _RULES_OF_STEPS):
        return f"has rule {rule.name}, so uses_steps must be {rule in _RULES_OF_STEPS}"
    return None


def _fault_of_numbers(policy: UnmaskingPolicy) -> str | None:
    """Whether every number is a record of numbers whose default is one of them."""
    for name, one in policy.numbers.items():
        if not isinstance(one, Parameter) or not one.is_number:
            return f"has numbers[{name!r}]={one!r}, which is no Parameter of a number"
        try:
            if one.default is not None:
                one.parse(one.default)
        except ValueError as error:
            return f"has numbers[{name!r}] with the default {one.default!r}, which {error}"
    return None
