# SPDX-License-Identifier: Apache-2.0
"""``renoise``: every step writes the whole canvas again, kept tokens and fresh noise."""

from typing import ClassVar

from vllm.v1.diffusion.kernels.rules import Rule
from vllm.v1.diffusion.policies.adaptive.entropy_bounded import EntropyBounded
from vllm.v1.diffusion.policies.base import UnmaskingPolicy
from vllm.v1.diffusion.policies.parameter import Count, NotNegative, Parameter, Positive


class Renoise(UnmaskingPolicy):
    """Keeps drawn tokens by rising entropy up to a bound, and draws noise elsewhere (DiffusionGemma).

    For models whose noise is a random token: nothing is unmasked before the block is done, so a kept
    token may be noise again in the next step. The temperature falls from ``t_max`` to ``t_min`` over the
    steps. A block is done after them, or earlier, when the most probable tokens have been the same for
    ``stability_threshold`` steps and the mean entropy is below ``confidence_threshold``. Its tokens are
    the most probable ones of its last step. ``sampling/renoising.py`` carries that out.
    """

    rule = Rule.STATIC
    numbers: ClassVar = {
        "entropy_bound": EntropyBounded.numbers["entropy_bound"],
        "t_max": Parameter("Temperature of a block's first step.", Positive, default=0.8),
        "t_min": Parameter(
            "Temperature that a block's last step comes close to; below `diffusion_t_max`.",
            NotNegative,
            default=0.4,
        ),
        "stability_threshold": Parameter(
            "Steps for which the most probable tokens must have been the same before a block is done early.",
            Count,
            default=1,
        ),
        "confidence_threshold": Parameter(
            "Mean entropy, in nats, below which a block may be done early.", Positive, default=0.005
        ),
    }
    uses_steps = True
    default_steps = 48
    noise = "uniform"
