# SPDX-License-Identifier: Apache-2.0
"""What ``--diffusion-config`` accepts, and how it is resolved for a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from vllm.config.diffusion import DiffusionConfig
from vllm.config.utils import config
from vllm.v1.diffusion.families import Family, family_of_architectures
from vllm.v1.diffusion.kernels.rules import MAX_CANVAS

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig


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
    """Default probability above which ``edit`` rewrites an unmasked token."""

    low_threshold: float | None = Field(default=None, ge=0, le=1)
    """Default second threshold of ``hierarchical``."""

    max_post_steps: int | None = Field(default=None, ge=0)
    """Default steps that ``edit`` may take after a block's last mask."""

    cache: Literal["none", "prefix", "dual"] | None = None
    """What bidirectional families reuse between the steps of a block: nothing, the
    keys and values before it, or those before and after it (Fast-dLLM's names)."""

    mask_token_id: int | None = Field(default=None, ge=0)
    """Id of the mask token."""

    stop_at_eos: bool | None = None
    """Whether a response ends at the end token; where it does not, the whole canvas is
    returned, unless ``stop_token_ids`` or ``stop`` of a request end it."""

    end_token_ids: list[int] | None = None
    """Ids that ``diffusion_confidence_eos_eot_inf`` keeps from being unmasked early."""


class Setting(NamedTuple):
    """A resolved setting.

    Attributes:
        value: The value; None where the setting does not apply or is open.
        source: Where it comes from.
    """

    value: Any
    source: str


GIVEN, MODEL, TOKENIZER, TABLE, ENGINE = (
    "--diffusion-config", "config.json", "tokenizer", "family table", "engine",
)  # fmt: skip


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
    found = settings(vllm_config.model_config, vllm_config.diffusion_config)
    return MaskedDiffusionConfig(**{name: setting.value for name, setting in found.items()})


def settings(model_config: ModelConfig, config: DiffusionConfig | None) -> dict[str, Setting]:
    """Every field of the configuration for a model, with where it comes from.

    Args:
        model_config: The model.
        config: What ``--diffusion-config`` gave, or None.

    Raises:
        ValueError: As :func:`resolve_diffusion_config`.
    """
    family = family_of_architectures(model_config.architectures)
    if family is None:
        raise ValueError(f"{model_config.architectures} is no masked-diffusion architecture.")
    given = config or MaskedDiffusionConfig()
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
        (given.block_length, GIVEN),
        (given.canvas_length, GIVEN),
        (getattr(hf_config, "block_size", None), MODEL),
        (family.block_length, TABLE),
        (min(model_config.max_model_len, MAX_CANVAS), f"{TABLE}: a response is one block"),
    )
    if block_length.value > MAX_CANVAS:
        raise ValueError(f"diffusion_config: block_length={block_length.value} must be at most {MAX_CANVAS}.")
    cache = _first((given.cache, GIVEN), ("none", TABLE))
    if family.loop != "full_diffusion":
        if given.cache is not None:
            raise ValueError(
                f"diffusion_config: cache={given.cache!r} has no effect on {family.name} "
                "models, whose cache is exact."
            )
        cache = Setting(None, "the family's cache is exact")
    algorithm = _first((given.algorithm, GIVEN), (family.algorithm, TABLE))
    _check_algorithm(algorithm.value)
    return {
        "canvas_length": block_length,
        "block_length": block_length,
        "algorithm": algorithm,
        "steps": Setting(given.steps, GIVEN if given.steps else "the algorithm's"),
        "threshold": _first((given.threshold, GIVEN), (family.threshold, TABLE)),
        "entropy_bound": _first((given.entropy_bound, GIVEN), (family.entropy_bound, TABLE)),
        **{name: _own(given, name) for name in ("edit_threshold", "low_threshold", "max_post_steps")},
        "cache": cache,
        "mask_token_id": _mask_token_id(model_config, family, given),
        "stop_at_eos": _first(
            (given.stop_at_eos, GIVEN),
            (getattr(hf_config, "stop_at_eos", None), MODEL),
            (family.stops_at_eos, TABLE),
        ),
        "end_token_ids": _end_token_ids(model_config, family, given),
    }


def _mask_token_id(model_config: ModelConfig, family: Family, given: MaskedDiffusionConfig) -> Setting:
    """The mask token; the tokenizer's where the family's is of a larger vocabulary."""
    found = _first(
        (given.mask_token_id, GIVEN),
        (getattr(model_config.hf_config, "mask_token_id", None), MODEL),
        (family.mask_token_id, TABLE),
    )
    vocab_size = model_config.get_vocab_size()
    if found.source == TABLE and found.value >= vocab_size and not model_config.skip_tokenizer_init:
        from vllm.tokenizers import cached_tokenizer_from_config

        own = getattr(cached_tokenizer_from_config(model_config), "mask_token_id", None)
        found = found if own is None else Setting(own, TOKENIZER)
    if not 0 <= found.value < vocab_size:
        raise ValueError(
            f"mask_token_id={found.value} ({found.source}) is outside the vocabulary of "
            f"{vocab_size} tokens. Set it in the model's config.json or with "
            "--diffusion-config '{\"mask_token_id\": ID}'."
        )
    return found


def _own(given: MaskedDiffusionConfig, name: str) -> Setting:
    """A setting that an algorithm has a default for."""
    value = getattr(given, name)
    return Setting(value, "the algorithm's" if value is None else GIVEN)


def _end_token_ids(model_config: ModelConfig, family: Family, given: MaskedDiffusionConfig) -> Setting:
    """The end tokens of a family that tells the end of a turn from that of the text."""
    if given.end_token_ids is not None:
        return Setting(given.end_token_ids, GIVEN)
    if family.end_of_turn is None:
        return Setting(None, "the family has no such setting")
    eos = model_config.hf_config.eos_token_id
    ids = list(eos) if isinstance(eos, list) else [eos] if eos is not None else []
    text, turn = family.end_of_turn
    source = f"{MODEL}, {TABLE}"
    if not model_config.skip_tokenizer_init:
        from vllm.tokenizers import cached_tokenizer_from_config

        turn = cached_tokenizer_from_config(model_config).get_vocab().get(text, turn)
        source = f"{MODEL}, {TOKENIZER}"
    if turn < model_config.get_vocab_size() and turn not in ids:
        ids.append(turn)
    return Setting(ids, source)


def end_tokens(model_config: ModelConfig) -> frozenset[int]:
    """The end tokens that the model's generation config names, one or several."""
    ids = model_config.try_get_generation_config().get("eos_token_id")
    return frozenset([ids] if isinstance(ids, int) else ids or ())


def family_of(vllm_config: VllmConfig) -> Family:
    """The family of the model served."""
    family = family_of_architectures(vllm_config.model_config.architectures)
    assert family is not None
    return family


def _check_algorithm(algorithm: str) -> None:
    from vllm.v1.diffusion.policies import get_policy

    get_policy(algorithm)


def _first(*candidates: tuple[Any, str]) -> Setting:
    return Setting(*next(candidate for candidate in candidates if candidate[0] is not None))
