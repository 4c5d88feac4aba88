# SPDX-License-Identifier: Apache-2.0
"""``low_confidence_dynamic``: every position above a threshold."""

from typing import ClassVar

from vllm.v1.diffusion.kernels.rules import Rule
from vllm.v1.diffusion.policies.base import UnmaskingPolicy
from vllm.v1.diffusion.policies.parameter import THRESHOLD


class LowConfidenceDynamic(UnmaskingPolicy):
    """Unmasks all positions above the threshold, at least the scheduled n (SDAR)."""

    rule = Rule.DYNAMIC
    uses_steps = True
    numbers: ClassVar = {"threshold": THRESHOLD}
