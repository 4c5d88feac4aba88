# SPDX-License-Identifier: Apache-2.0
"""Finds unmasking policies by name."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from vllm.v1.diffusion.policies.base import UnmaskingPolicy
from vllm.v1.diffusion.policies.confidence_threshold import ConfidenceThreshold
from vllm.v1.diffusion.policies.entropy import Entropy
from vllm.v1.diffusion.policies.entropy_bounded import EntropyBounded
from vllm.v1.diffusion.policies.factor import Factor
from vllm.v1.diffusion.policies.low_confidence_dynamic import LowConfidenceDynamic
from vllm.v1.diffusion.policies.low_confidence_static import LowConfidenceStatic
from vllm.v1.diffusion.policies.maskgit_plus import MaskgitPlus
from vllm.v1.diffusion.policies.origin import Origin
from vllm.v1.diffusion.policies.sequential import Sequential
from vllm.v1.diffusion.policies.sub_blocks import SubBlocks
from vllm.v1.diffusion.policies.threshold import Threshold
from vllm.v1.diffusion.policies.topk_margin import TopkMargin

ENTRY_POINT_GROUP = "vllm.unmasking_policies"

_BUILT_IN: dict[str, type[UnmaskingPolicy]] = {
    "confidence_threshold": ConfidenceThreshold,
    "entropy": Entropy,
    "entropy_bounded": EntropyBounded,
    "low_confidence_dynamic": LowConfidenceDynamic,
    "low_confidence_static": LowConfidenceStatic,
    "factor": Factor,
    "maskgit_plus": MaskgitPlus,
    "origin": Origin,
    "sequential": Sequential,
    "sub_blocks": SubBlocks,
    "threshold": Threshold,
    "topk_margin": TopkMargin,
}


def built_in_policies() -> list[str]:
    """The names of the policies that come with this package."""
    return sorted(_BUILT_IN)


def known_policies() -> list[str]:
    """The names of the built-in policies and of those that packages register."""
    registered = (e.name for e in entry_points(group=ENTRY_POINT_GROUP))
    return sorted({*_BUILT_IN, *registered})


@cache
def get_policy(name: str) -> UnmaskingPolicy:
    """The policy of that name.

    Raises:
        ValueError: No such policy, or its package cannot be imported.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]()
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        if entry_point.name == name:
            try:
                policy = entry_point.load()()
            except Exception as error:
                raise ValueError(
                    f"diffusion_algorithm={name!r} ({entry_point.value}) cannot be loaded: {error}"
                ) from error
            if not isinstance(policy, UnmaskingPolicy):
                raise ValueError(f"diffusion_algorithm={name!r} ({entry_point.value}) is no UnmaskingPolicy.")
            return policy
    raise ValueError(f"Unknown diffusion_algorithm={name!r}. Known: {', '.join(known_policies())}.")
