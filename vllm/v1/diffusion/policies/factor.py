# SPDX-License-Identifier: Apache-2.0
"""``factor``: the more positions a step settles, the surer each must be."""

from vllm.v1.diffusion.policies.base import UnmaskingPolicy
from vllm.v1.diffusion.rules import Rule


class Factor(UnmaskingPolicy):
    """Settles the n-th best position while p >= 1 - factor / (n + 1) (Fast-dLLM)."""

    rule = Rule.FACTOR
    parameters = frozenset({"factor"})
    threshold_parameter = "factor"
