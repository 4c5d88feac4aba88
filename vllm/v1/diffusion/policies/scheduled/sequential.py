# SPDX-License-Identifier: Apache-2.0
"""``sequential``: a fixed number of positions, from the left."""

from vllm.v1.diffusion.kernels.rules import Rule
from vllm.v1.diffusion.policies.base import ScheduledPolicy


class Sequential(ScheduledPolicy):
    """Unmasks the n leftmost masked positions (SDAR)."""

    rule = Rule.SEQUENTIAL
