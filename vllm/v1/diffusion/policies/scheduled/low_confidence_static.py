# SPDX-License-Identifier: Apache-2.0
"""``low_confidence_static``: a fixed number of positions, the most confident."""

from vllm.v1.diffusion.kernels.rules import Rule
from vllm.v1.diffusion.policies.base import ScheduledPolicy


class LowConfidenceStatic(ScheduledPolicy):
    """Unmasks the n most confident positions (SDAR, LLaDA ``low_confidence``)."""

    rule = Rule.STATIC
