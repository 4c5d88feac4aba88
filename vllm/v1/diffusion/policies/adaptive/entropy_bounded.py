# SPDX-License-Identifier: Apache-2.0
"""``entropy_bounded``: positions of lowest entropy, up to a total."""

from typing import ClassVar

from vllm.v1.diffusion.kernels.rules import Rule
from vllm.v1.diffusion.policies.base import UnmaskingPolicy
from vllm.v1.diffusion.policies.parameter import Parameter, Positive


class EntropyBounded(UnmaskingPolicy):
    """Unmasks positions by rising entropy while its sum stays below a bound (SDAR)."""

    rule = Rule.ENTROPY_BOUNDED
    numbers: ClassVar = {
        "entropy_bound": Parameter(
            "Bound on the summed entropy of the positions that a step unmasks, in nats.",
            Positive,
            otherwise="`--diffusion-config`, else the family's",
        )
    }
