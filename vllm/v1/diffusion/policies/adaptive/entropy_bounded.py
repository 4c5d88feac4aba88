# SPDX-License-Identifier: Apache-2.0
"""``entropy_bounded``: positions of lowest entropy, up to a total."""

from vllm.v1.diffusion.kernels.rules import Rule
from vllm.v1.diffusion.policies.base import UnmaskingPolicy


class EntropyBounded(UnmaskingPolicy):
    """Unmasks positions by rising entropy while its sum stays below a bound (SDAR)."""

    rule = Rule.ENTROPY_BOUNDED
    parameters = frozenset({"entropy_bound"})
    threshold_parameter = "entropy_bound"
