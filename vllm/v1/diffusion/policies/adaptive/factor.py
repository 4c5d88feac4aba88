# SPDX-License-Identifier: Apache-2.0
"""``factor``: the more positions a step unmasks, the surer each must be."""

from typing import ClassVar

from vllm.v1.diffusion.kernels.rules import Rule
from vllm.v1.diffusion.policies.base import UnmaskingPolicy
from vllm.v1.diffusion.policies.parameter import Parameter, Positive


class Factor(UnmaskingPolicy):
    """Unmasks the n-th best while p >= 1 - factor / (n + 1), and a last one that fails alone (Fast-dLLM)."""

    rule = Rule.FACTOR
    numbers: ClassVar = {
        "factor": Parameter(
            "Fast-dLLM's factor: the more positions a step unmasks, the surer each must be.", Positive
        )
    }
