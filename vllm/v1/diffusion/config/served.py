# SPDX-License-Identifier: Apache-2.0
"""The family of the model that is served."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vllm.config.diffusion import DiffusionConfig
from vllm.v1.diffusion.config.accepted import MaskedDiffusionConfig
from vllm.v1.diffusion.families import Family, family_of_architectures

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig


def family_of(vllm_config: VllmConfig) -> Family:
    """The family of the model served."""
    family = served_family(vllm_config.model_config, vllm_config.diffusion_config)
    assert family is not None
    return family


def served_family(model_config: ModelConfig, config: DiffusionConfig | None) -> Family | None:
    """The family of a model, with what ``--diffusion-config`` says of its checkpoint.

    Args:
        model_config: The model.
        config: What was given, or None.

    Returns:
        The family; None where the architecture is of none.

    Raises:
        ValueError: Something was said that does not apply to the family.
    """
    family = family_of_architectures(model_config.architectures)
    if family is None or not isinstance(config, MaskedDiffusionConfig):
        return family
    for name in ("attention", "right_shift_logits"):
        value = getattr(config, name)
        if value is not None and family.block_causal_loop is None:
            raise ValueError(
                f"diffusion_config: {name}={value!r} has no effect on {family.name} models, of which there "
                "is one kind."
            )
    if config.attention == "block_causal":
        assert family.block_causal_loop is not None
        shifted = bool(config.right_shift_logits)
        loop = ("shifted_" if shifted else "") + family.block_causal_loop
        return replace(family, loop=loop, stops_at_eos=True, shifted=shifted)
    return replace(family, shifted=True) if config.right_shift_logits else family
