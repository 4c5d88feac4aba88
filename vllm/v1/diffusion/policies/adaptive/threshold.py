# SPDX-License-Identifier: Apache-2.0
"""``threshold``: every position that is confident enough."""

from typing import ClassVar

from vllm.v1.diffusion.kernels.rules import Rule
from vllm.v1.diffusion.policies.base import UnmaskingPolicy
from vllm.v1.diffusion.policies.parameter import THRESHOLD


class Threshold(UnmaskingPolicy):
    """Unmasks all positions at or above the threshold, and the best (Fast-dLLM)."""

    rule = Rule.THRESHOLD
    numbers: ClassVar = {"threshold": THRESHOLD}
