# SPDX-License-Identifier: Apache-2.0
"""``--diffusion-config`` resolved for a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vllm.config.diffusion import DiffusionConfig
from vllm.config.utils import config
from vllm.platforms import current_platform
from vllm.v1.diffusion.config.accepted import MaskedDiffusionConfig
from vllm.v1.diffusion.config.limits import CAUSAL, MONTE_CARLO, SAMPLES, work_limits
from vllm.v1.diffusion.config.published import published_defaults, published_renoising
from vllm.v1.diffusion.config.served import served_family
from vllm.v1.diffusion.config.setting import DEFAULT, GENERATION, GIVEN, MODEL, TABLE, Setting, first
from vllm.v1.diffusion.config.special_ids import (
    delete_token_id,
    end_think_token_id,
    end_token_ids,
    first_end_token,
    mask_token_id,
    of_model,
)
from vllm.v1.diffusion.families import ELASTIC_ROWS, SEEDED, Family, is_scored
from vllm.v1.diffusion.kernels.rules import MAX_CANVAS
from vllm.v1.diffusion.policies import get_policy
from vllm.v1.diffusion.policies.registry import built_in_numbers

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig


@config
class ResolvedDiffusionConfig(MaskedDiffusionConfig):
    """The settings of a configured engine: nothing that has a default is open any more."""


def resolve_diffusion_config(vllm_config: VllmConfig) -> ResolvedDiffusionConfig:
    """Fills what ``--diffusion-config`` left open; of a configured engine, what was resolved then.

    Args:
        vllm_config: Configuration of an engine that serves a masked-diffusion
            model.

    Returns:
        The configuration with every field that has a default set.

    Raises:
        ValueError: The model is of no known family, or a setting does not fit
            the model.
    """
    if isinstance(vllm_config.diffusion_config, ResolvedDiffusionConfig):
        return vllm_config.diffusion_config
    found = settings(vllm_config.model_config, vllm_config.diffusion_config)
    return ResolvedDiffusionConfig(**{name: setting.value for name, setting in found.items()})


def settings(model_config: ModelConfig, config: DiffusionConfig | None) -> dict[str, Setting]:
    """Every field of the configuration for a model, with where it comes from.

    Args:
        model_config: The model.
        config: What ``--diffusion-config`` gave, or None.

    Raises:
        ValueError: As :func:`resolve_diffusion_config`.
    """
    given = config or MaskedDiffusionConfig()
    if not isinstance(given, MaskedDiffusionConfig):
        given = MaskedDiffusionConfig(canvas_length=given.canvas_length)
    family = served_family(model_config, given)
    if family is None:
        raise ValueError(f"{model_config.architectures} is no masked-diffusion architecture.")
    hf_config = model_config.hf_config
    masked, _ = published_defaults(model_config, family)
    block_length = first(
        (given.block_length, GIVEN),
        (masked.get("block_length"), GENERATION),
        (getattr(hf_config, "block_size", None), MODEL),
        (family.block_length, TABLE),
        (min(model_config.max_model_len, MAX_CANVAS), f"{TABLE}: a response is one block"),
    )
    canvas = _canvas(family, "max_canvas_length", given.max_canvas_length, masked, None)
    if canvas.value is not None and block_length.value > canvas.value:
        if block_length.source == GIVEN:
            raise ValueError(
                f"diffusion_config: block_length={block_length.value} must not exceed "
                f"max_canvas_length={canvas.value}."
            )
        block_length = canvas
    if block_length.value > MAX_CANVAS:
        raise ValueError(f"diffusion_config: block_length={block_length.value} must be at most {MAX_CANVAS}.")
    pooled = _pooled(hf_config, given, block_length)
    cache = first((given.cache, GIVEN), ("none", TABLE))
    if family.loop not in ("full_diffusion", "elastic_diffusion"):
        if given.cache is not None:
            raise ValueError(
                f"diffusion_config: cache={given.cache!r} has no effect on {family.name} "
                "models, whose cache is exact."
            )
        cache = Setting(None, "the family's cache is exact")
    algorithm = first(
        (given.algorithm, GIVEN), (masked.get("algorithm"), GENERATION), (family.algorithm, TABLE)
    )
    policy = get_policy(algorithm.value)
    if policy.noise != ("uniform" if family.mask_token_id is None else "mask"):
        raise ValueError(
            f"diffusion_config: algorithm={algorithm.value!r} is not for {family.name} models, whose open "
            f"positions hold {'random tokens' if family.mask_token_id is None else 'masks'}; theirs is "
            f"{family.algorithm!r}."
        )
    numbers = {**built_in_numbers(), **policy.numbers}
    published = published_renoising(model_config, policy) if family.mask_token_id is None else {}
    found = {
        "canvas_length": block_length,
        "block_length": block_length,
        "max_canvas_length": canvas,
        "default_max_tokens": _canvas(
            family, "default_max_tokens", given.default_max_tokens, masked, family.answer_length
        ),
        "algorithm": algorithm,
        "steps": first((given.steps, GIVEN), (masked.get("steps"), GENERATION), (None, "the algorithm's")),
        **{name: _number(given, family, name, masked.get(name)) for name in numbers},
        "end_token_id": first(
            (given.numbers.get("end_token_id"), GIVEN),
            (first_end_token(hf_config), MODEL),
            (None, "it must be given"),
        ),
        **{
            n: s
            for n, s in published.items()
            if given.numbers.get(n) is None and getattr(given, n, None) is None
        },
        "cache": cache,
        "attention": _kind(family, given.attention, "bidirectional"),
        **_rows(family, given),
        "likelihood": _likelihood(family, given, cache),
        **_sampled(family, given, cache),
        "right_shift_logits": _kind(family, given.right_shift_logits, False),
        "head_quantization": _head_quantization(given),
        "mask_token_id": mask_token_id(model_config, family, given, masked.get("mask_token_id")),
        "delete_token_id": delete_token_id(hf_config, given, family),
        "expand_token_id": of_model(hf_config, given, "expand_token_id"),
        "split_token_id": of_model(hf_config, given, "split_token_id"),
        "pooled_block_length": pooled,
        "mode": _causal_mode(model_config, family, given),
        "end_think_token_id": end_think_token_id(model_config, family, given),
        "stop_at_eos": first(
            (given.stop_at_eos, GIVEN),
            (getattr(hf_config, "stop_at_eos", None), MODEL),
            (family.stops_at_eos, TABLE),
        ),
        "end_token_ids": end_token_ids(model_config, family, given),
    }
    return {**found, **work_limits(given, found)}


def _rows(family: Family, given: MaskedDiffusionConfig) -> dict[str, Setting]:
    """Which rows of a block steps compute, of a family whose steps may leave some out."""
    values = {"rows": given.rows, "row_candidates": given.row_candidates}
    if family.name in ELASTIC_ROWS:
        return {
            "rows": first((given.rows, GIVEN), ("exact", DEFAULT)),
            "row_candidates": first((given.row_candidates, GIVEN), (None, "12, with elastic rows")),
        }
    for name, value in values.items():
        if value is not None:
            raise ValueError(
                f"diffusion_config: {name}={value!r} has no effect on {family.name} models, but on "
                f"{', '.join(ELASTIC_ROWS)}."
            )
    return {name: Setting(None, "the family has no such setting") for name in values}


def _head_quantization(given: MaskedDiffusionConfig) -> Setting:
    """In what the head's weights are read."""
    value = given.head_quantization
    if value is not None and not current_platform.is_cuda():
        raise ValueError(
            f"diffusion_config: head_quantization={value!r} needs a GPU of compute capability 9.0; this is "
            f"{current_platform.device_type!r}."
        )
    return first((value, GIVEN), (None, "upstream's"))


def _likelihood(family: Family, given: MaskedDiffusionConfig, cache: Setting) -> Setting:
    """The estimator of a prompt's log probabilities, of a family that has any."""
    if is_scored(family):
        if given.likelihood == MONTE_CARLO and cache.value is None:
            raise ValueError(
                f"diffusion_config: likelihood={given.likelihood!r} is not for {family.name} models: "
                f"{CAUSAL}."
            )
        return first((given.likelihood, GIVEN), ("left_to_right", DEFAULT))
    if given.likelihood is not None:
        raise ValueError(
            f"diffusion_config: likelihood={given.likelihood!r} has no effect on {family.name} models, which "
            "give no log probabilities of a prompt."
        )
    return Setting(None, "the family has no such setting")


def _sampled(family: Family, given: MaskedDiffusionConfig, cache: Setting) -> dict[str, Setting]:
    """How ``monte_carlo`` samples, on models that have it."""
    found, samples = {}, is_scored(family) and cache.value is not None
    most = given.score_samples_limit or SAMPLES
    for name, otherwise in (("score_samples", min(SAMPLES, most)), ("score_seed", 0)):
        value = getattr(given, name)
        if samples:
            found[name] = first((value, GIVEN), (otherwise, DEFAULT))
        elif value is not None:
            raise ValueError(
                f"diffusion_config: {name}={value!r} has no effect on {family.name} models, which have no "
                f"likelihood of {MONTE_CARLO!r}."
            )
        else:
            found[name] = Setting(None, "the family has no such setting")
    return found


def _kind(family: Family, given: Any, otherwise: Any) -> Setting:
    """A setting that tells apart checkpoints whose files do not."""
    if family.block_causal_loop is None:
        return Setting(None, "the family has no such setting")
    return first((given, GIVEN), (otherwise, TABLE))


def _canvas(
    family: Family, name: str, given: int | None, published: Mapping[str, Any], otherwise: int | None
) -> Setting:
    """A length of answers in which every position sees the whole canvas."""
    if family.loop != "full_diffusion":
        if given is not None:
            raise ValueError(
                f"diffusion_config: {name}={given} has no effect on {family.name} models, which write block "
                "after block."
            )
        return Setting(None, "the family writes block after block")
    return first((given, GIVEN), (published.get(name), GENERATION), (otherwise, TABLE))


def _number(given: MaskedDiffusionConfig, family: Family, name: str, published: float | None) -> Setting:
    """A number of a policy: the operator's, else the checkpoint's, the family's, the policy's own."""
    return first(
        (given.numbers.get(name), GIVEN),
        (published, GENERATION),
        (getattr(family, name, None), TABLE),
        (None, "the algorithm's"),
    )


def _causal_mode(model_config: ModelConfig, family: Family, given: MaskedDiffusionConfig) -> Setting:
    """What a checkpoint does for a request, of a family that can write causally."""
    if family.name not in SEEDED:
        if given.mode is not None:
            raise ValueError(
                f"diffusion_config: mode={given.mode!r} has no effect on {family.name} models, which "
                f"only denoise; it has on {', '.join(SEEDED)}."
            )
        return Setting(None, "the family only denoises")
    # Both are how a file asks for it.
    writes = getattr(model_config.hf_config, "ar_mode", None) or any(
        name.endswith("ForCausalLM") for name in model_config.architectures
    )
    return first((given.mode, GIVEN), ("autoregressive" if writes else None, MODEL), ("diffusion", TABLE))


def _pooled(hf_config: Any, given: MaskedDiffusionConfig, block_length: Setting) -> Setting:
    """Tokens that share a pool of experts, which must be a block."""
    if getattr(hf_config, "expert_capacity", None) is None:
        if given.pooled_block_length is not None:
            raise ValueError(
                f"diffusion_config: pooled_block_length={given.pooled_block_length} has no effect on this "
                "model, whose tokens choose their experts alone."
            )
        return Setting(None, "tokens choose their experts alone")
    own = hf_config.block_size
    for name, value in (
        ("pooled_block_length", given.pooled_block_length),
        ("block_length", block_length.value),
    ):
        if value not in (None, own):
            raise ValueError(
                f"diffusion_config: {name}={value} must be {own}, the model's block_size: with "
                "expert_capacity the tokens of a block choose their experts together."
            )
    return Setting(own, MODEL)
