# SPDX-License-Identifier: Apache-2.0
"""Unmasking policies: which masked positions a denoising step unmasks."""

from vllm.v1.diffusion.policies.base import (
    CanvasView,
    Choice,
    PositionStats,
    ScheduledPolicy,
    UnmaskingPolicy,
)
from vllm.v1.diffusion.policies.registry import built_in_policies, get_policy, known_policies

__all__ = [
    "CanvasView",
    "Choice",
    "PositionStats",
    "ScheduledPolicy",
    "UnmaskingPolicy",
    "built_in_policies",
    "get_policy",
    "known_policies",
]
