# SPDX-License-Identifier: Apache-2.0
"""What ``--diffusion-config`` accepts, and how it is resolved for a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from vllm.config.diffusion import DiffusionConfig
from vllm.config.utils import config
from vllm.v1.diffusion.families import Family, family_of_architectures
from vllm.v1.diffusion.rules import MAX_CANVAS

if TYPE_CHECKING:
    from vllm.config import VllmConfig


@config
class MaskedDiffusionConfig(DiffusionConfig):
    """Settings of a masked diffusion model.

    What is unset is taken from the model's configuration, else from its
    family's defaults (``vllm/v1/diffusion/families.py``).
    """

    block_length: int | None = Field(default=None, gt=0)
    """Tokens a block, and the longest block a request may ask for."""

    algorithm: str | None = None
    """Name of the default unmasking policy."""

    steps: int | None = Field(default=None, gt=0)
    """Default denoising steps a block; unset: as many as the block has tokens."""

    threshold: float | None = Field(default=None, ge=0, le=1)
    """Default confidence threshold."""

    entropy_bound: float | None = Field(default=None, gt=0)
    """Default bound on the summed entropy of a step's tokens, in nats."""

    edit_threshold: float | None = Field(default=None, ge=0, le=1)
    """Default probability above which ``edit`` rewrites a settled token."""

    low_threshold: float | None = Field(default=None, ge=0, le=1)
    """Default second threshold of ``hierarchical``."""

    max_post_steps: int | None = Field(default=None, ge=0)
    """Default steps that ``edit`` may take after a block's last mask."""

    cache: Literal["none", "prefix", "dual"] | None = None
    """What bidirectional families reuse between the steps of a block: nothing, the
    keys and values before it, or those before and after it (Fast-dLLM's names)."""

    mask_token_id: int | None = Field(default=None, ge=0)
    """Id of the mask token."""


def resolve_diffusion_config(vllm_config: VllmConfig) -> MaskedDiffusionConfig:
    """Fills what ``--diffusion-config`` left open; idempotent.

    Args:
        vllm_config: Configuration of an engine that serves a masked-diffusion
            model.

    Returns:
        The configuration with every field that has a default set.

    Raises:
        ValueError: The model is of no known family, or a setting does not fit
            the model.
    """
    model_config = vllm_config.model_config
    family = family_of_architectures(model_config.architectures)
    if family is None:
        raise ValueError(f"{model_config.architectures} is no masked-diffusion architecture.")
    given = vllm_config.diffusion_config or MaskedDiffusionConfig()
    if not isinstance(given, MaskedDiffusionConfig):
        given = MaskedDiffusionConfig(canvas_length=given.canvas_length)
    hf_config = model_config.hf_config
    if (
        given.canvas_length is not None
        and given.block_length is not None
        and given.canvas_length != given.block_length
    ):
        raise ValueError(
            f"diffusion_config: canvas_length={given.canvas_length} and "
            f"block_length={given.block_length} name the same thing for "
            f"{family.name} models; give one."
        )
    block_length = _first(
        given.block_length,
        given.canvas_length,
        getattr(hf_config, "block_size", None),
        family.block_length,
        min(model_config.max_model_len, MAX_CANVAS),
    )
    if block_length > MAX_CANVAS:
        raise ValueError(f"diffusion_config: block_length={block_length} must be at most {MAX_CANVAS}.")
    mask_token_id = _first(
        given.mask_token_id,
        getattr(hf_config, "mask_token_id", None),
        family.mask_token_id,
    )
    vocab_size = model_config.get_vocab_size()
    if not 0 <= mask_token_id < vocab_size:
        raise ValueError(
            f"mask_token_id={mask_token_id} is outside the vocabulary of "
            f"{vocab_size} tokens. Set it in the model's config.json or with "
            "--diffusion-config '{\"mask_token_id\": ID}'."
        )
    bidirectional = family.loop == "full_diffusion"
    if given.cache is not None and not bidirectional:
        raise ValueError(
            f"diffusion_config: cache={given.cache!r} has no effect on {family.name} "
            "models, whose cache is exact."
        )
    algorithm = given.algorithm or family.algorithm
    _check_algorithm(algorithm)
    return MaskedDiffusionConfig(
        canvas_length=block_length,
        block_length=block_length,
        algorithm=algorithm,
        steps=given.steps,
        threshold=_first(given.threshold, family.threshold),
        entropy_bound=_first(given.entropy_bound, family.entropy_bound),
        edit_threshold=given.edit_threshold,
        low_threshold=given.low_threshold,
        max_post_steps=given.max_post_steps,
        cache=(given.cache or "none") if bidirectional else None,
        mask_token_id=mask_token_id,
    )


def family_of(vllm_config: VllmConfig) -> Family:
    """The family of the model served."""
    family = family_of_architectures(vllm_config.model_config.architectures)
    assert family is not None
    return family


def _check_algorithm(algorithm: str) -> None:
    from vllm.v1.diffusion.policies import get_policy

    get_policy(algorithm)


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
