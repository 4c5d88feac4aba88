# SPDX-License-Identifier: Apache-2.0
"""Unmasking policies: which masked positions a denoising step unmasks."""

from vllm.v1.diffusion.policies.base import (
    UNMASKING_POLICY_API,
    Boost,
    CanvasView,
    PositionStats,
    Rewrite,
    ScheduledPolicy,
    UnmaskingPolicy,
)
from vllm.v1.diffusion.policies.parameter import THRESHOLD, Parameter
from vllm.v1.diffusion.policies.registry import built_in_policies, get_policy, known_policies

__all__ = [
    "THRESHOLD",
    "UNMASKING_POLICY_API",
    "Boost",
    "CanvasView",
    "Parameter",
    "PositionStats",
    "Rewrite",
    "ScheduledPolicy",
    "UnmaskingPolicy",
    "built_in_policies",
    "get_policy",
    "known_policies",
]
