# SPDX-License-Identifier: Apache-2.0
"""What ``--diffusion-config`` accepts, and how it is resolved for a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator
from pydantic_core import ArgsKwargs

from vllm.config.diffusion import DiffusionConfig
from vllm.config.utils import config
from vllm.logger import init_logger
from vllm.v1.diffusion.checkpoint.files import checkpoint_files
from vllm.v1.diffusion.checkpoint.generation_defaults import generation_settings
from vllm.v1.diffusion.families import (
    ELASTIC,
    IN_TOKENIZER,
    SEEDED,
    Family,
    family_of_architectures,
    is_scored,
)
from vllm.v1.diffusion.kernels.rules import MAX_CANVAS
from vllm.v1.diffusion.policies import get_policy
from vllm.v1.diffusion.policies.parameter import BlockLength, CacheMode, Estimator, Parameter, PositiveCount
from vllm.v1.diffusion.policies.registry import built_in_numbers, built_in_policies

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig
    from vllm.v1.diffusion.policies.base import UnmaskingPolicy

logger = init_logger(__name__)


_Limit = Annotated[int, Field(gt=0, le=2**31 - 1)]


@config
class MaskedDiffusionConfig(DiffusionConfig):
    """Settings of a masked diffusion model.

    What is unset is taken from the model's configuration, else from its
    family's defaults (``vllm/v1/diffusion/families.py``). Ranges are those of a request's
    parameters. A policy's numbers stand beside the fields, by name: ``{"threshold": 0.9}``.
    """

    block_length: BlockLength | None = None
    """Tokens per block, and the longest block a request may ask for. ``canvas_length``,
    upstream's name, is accepted for it."""

    algorithm: str | None = None
    """Name of the default unmasking policy."""

    max_canvas_length: BlockLength | None = None
    """Bidirectional families: most tokens of a canvas. A longer answer is written in further canvases."""

    default_max_tokens: PositiveCount | None = None
    """Bidirectional families: tokens of an answer whose request names no length."""

    steps: PositiveCount | None = None
    """Default denoising steps per block; unset: as many as the block has tokens."""

    cache: CacheMode | None = None
    """What bidirectional families reuse between the steps of a block: nothing, the
    keys and values before it, or those before and after it (Fast-dLLM's names)."""

    likelihood: Estimator | None = None
    """How a prompt's log probabilities are estimated for a request that does not say."""

    mask_token_id: int | None = Field(default=None, ge=0)
    """Id of the mask token; none where an open position holds a random token."""

    attention: Literal["bidirectional", "block_causal"] | None = None
    """How a checkpoint was trained whose files do not say it (A2D): MDLM's way, the default, or BD3LM's,
    whose blocks count from the prompt's end."""

    right_shift_logits: bool | None = None
    """Whether row i of an A2D checkpoint's logits predicts token i + 1."""

    delete_token_id: int | None = Field(default=None, ge=0)
    """Id by which a model deletes a token of its open block."""

    split_token_id: int | None = Field(default=None, ge=0)
    """Id by which a model inserts a mask before a token of its open block."""

    expand_token_id: int | None = Field(default=None, ge=0)
    """Id by which a model puts two masks in the place of one; its end token deletes."""

    pooled_block_length: int | None = Field(default=None, gt=0)
    """Tokens that share a pool of experts: the block length, and a request's too."""

    mode: Literal["diffusion", "autoregressive", "self_speculation"] | None = None
    """What a checkpoint that writes causally too does for a request that does not say."""

    end_think_token_id: int | None = Field(default=None, ge=0)
    """Id that ends the thinking of such a checkpoint."""

    stop_at_eos: bool | None = None
    """Whether a response ends at the end token; where it does not, the whole canvas is
    returned, unless ``stop_token_ids`` or ``stop`` of a request end it."""

    end_token_ids: list[int] | None = None
    """Ids that ``diffusion_end_tokens_last`` keeps from being unmasked early."""

    steps_limit: PositiveCount | None = None
    """Most denoising steps per block that a request may ask for; as many as its block has tokens
    are always allowed."""

    post_steps_limit: PositiveCount | None = None
    """Most steps after a block's last mask that a request may ask for."""

    bad_word_limit: _Limit | None = None
    """Most tokens of one bad word."""

    bad_words_limit: _Limit | None = None
    """Most tokens of all bad words of a request; a word counts once for each of its spellings."""

    grammar_limit: _Limit | None = None
    """Most characters of a grammar: of a JSON schema, a regular expression or a list of choices."""

    n_limit: _Limit | None = None
    """Most answers that a request may ask for at a time (``n``)."""

    numbers: dict[str, int | float] = Field(default_factory=dict)
    """Defaults of the policies' numbers, by name."""

    @property
    def edit_ids(self) -> tuple[int, int] | None:
        """The ids that delete a token and insert one; None of a model that does neither."""
        if self.expand_token_id is not None:
            assert self.delete_token_id is not None
            return self.delete_token_id, self.expand_token_id
        if self.delete_token_id is None or self.split_token_id is None:
            return None
        return self.delete_token_id, self.split_token_id

    @model_validator(mode="before")
    @classmethod
    def _collect_numbers(cls, given: Any) -> Any:
        """Gathers what is no field into ``numbers``, and uses one name for a block's length."""
        if not isinstance(given, ArgsKwargs) or given.args:
            return given
        settings = dict(given.kwargs or {})
        own = {field.name for field in fields(cls)}
        numbers = _one_each([*(settings.pop("numbers", None) or {}).items(), *_without(settings, own)])
        length = _one_each((k, settings.pop(k, None)) for k in ("block_length", "canvas_length"))
        if (most := settings.get("max_denoising_steps")) is not None:
            raise ValueError(f"max_denoising_steps={most!r} has no effect on masked diffusion; set steps.")
        algorithm = settings.get("algorithm")
        known = {**built_in_numbers(), **(get_policy(algorithm).numbers if algorithm else {})}
        for name, value in numbers.items():
            if name not in known:
                names = sorted(own - _NOT_SHOWN | known.keys())
                raise ValueError(f"{name}={value!r} has no effect. Known: {', '.join(names)}.")
            try:
                numbers[name] = known[name].parse(value)
            except ValueError as error:
                raise ValueError(f"{name}={value!r} {error}.") from None
        # Upstream reads its own name.
        lengths = dict.fromkeys(("block_length", "canvas_length"), length["block_length"]) if length else {}
        return ArgsKwargs((), {**settings, **lengths, "numbers": numbers})


_NOT_SHOWN = {"numbers", "canvas_length", "max_denoising_steps"}
"""Fields that are written in another way."""


def _without(settings: dict[str, Any], own: set[str]) -> list[tuple[str, Any]]:
    """Takes out what is no field of the configuration."""
    return [(name, settings.pop(name)) for name in list(settings) if name not in own]


def _one_each(given: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Values by their parameter's own name; None stands for not given."""
    aliases = {alias: name for name, one in built_in_numbers().items() for alias in one.aliases}
    aliases["canvas_length"] = "block_length"
    values: dict[str, Any] = {}
    for written, value in given:
        name = aliases.get(written, written)
        if value is not None and values.setdefault(name, value) != value:
            raise ValueError(
                f"{written}={value!r} and {name}={values[name]!r} name the same thing; give one."
            )
    return values


_LENGTHS = {
    "max_canvas_length": Parameter("Most tokens of a canvas.", BlockLength),
    "default_max_tokens": Parameter("Tokens of an answer whose request names no length.", PositiveCount),
}
_STEPS = Parameter("Denoising steps per block.", PositiveCount)


@config
class ResolvedDiffusionConfig(MaskedDiffusionConfig):
    """The settings of a configured engine: nothing that has a default is open any more."""


LIMITS = {
    "steps_limit": 256,
    "post_steps_limit": 256,
    "bad_word_limit": 64,
    "bad_words_limit": 1024,
    "grammar_limit": 65536,
    "n_limit": 128,
}
"""What bounds the work that one request may ask for, where the operator has not said it."""


FEW_ANSWERS = 16
"""Answers that a request may always ask for at a time, however few requests run at a time."""


def limit_of(config: MaskedDiffusionConfig, name: str) -> int:
    """A limit of ``LIMITS``: the operator's, else the default."""
    given = getattr(config, name)
    return LIMITS[name] if given is None else int(given)


class Setting(NamedTuple):
    """A resolved setting.

    Attributes:
        value: The value; None where the setting does not apply or is open.
        source: Where it comes from.
    """

    value: Any
    source: str


GIVEN, MODEL, GENERATION, TOKENIZER, TABLE, ENGINE, DEFAULT = (
    "--diffusion-config", "config.json", "generation_config.json", "tokenizer", "family table", "engine",
    "default",
)  # fmt: skip


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
    block_length = _first(
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
    cache = _first((given.cache, GIVEN), ("none", TABLE))
    if family.loop not in ("full_diffusion", "elastic_diffusion"):
        if given.cache is not None:
            raise ValueError(
                f"diffusion_config: cache={given.cache!r} has no effect on {family.name} "
                "models, whose cache is exact."
            )
        cache = Setting(None, "the family's cache is exact")
    algorithm = _first(
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
    published = _published(model_config, policy) if family.mask_token_id is None else {}
    found = {
        "canvas_length": block_length,
        "block_length": block_length,
        "max_canvas_length": canvas,
        "default_max_tokens": _canvas(
            family, "default_max_tokens", given.default_max_tokens, masked, family.answer_length
        ),
        "algorithm": algorithm,
        "steps": _first((given.steps, GIVEN), (masked.get("steps"), GENERATION), (None, "the algorithm's")),
        **{name: _number(given, family, name, masked.get(name)) for name in numbers},
        "end_token_id": _first(
            (given.numbers.get("end_token_id"), GIVEN),
            (_first_end_token(hf_config), MODEL),
            (None, "it must be given"),
        ),
        **{
            n: s
            for n, s in published.items()
            if given.numbers.get(n) is None and getattr(given, n, None) is None
        },
        "cache": cache,
        "attention": _kind(family, given.attention, "bidirectional"),
        "likelihood": _likelihood(family, given),
        "right_shift_logits": _kind(family, given.right_shift_logits, False),
        "mask_token_id": _mask_token_id(model_config, family, given, masked.get("mask_token_id")),
        "delete_token_id": _delete_token_id(hf_config, given, family),
        "expand_token_id": _of_model(hf_config, given, "expand_token_id"),
        "split_token_id": _of_model(hf_config, given, "split_token_id"),
        "pooled_block_length": pooled,
        "mode": _causal_mode(model_config, family, given),
        "end_think_token_id": _end_think_token_id(model_config, family, given),
        "stop_at_eos": _first(
            (given.stop_at_eos, GIVEN),
            (getattr(hf_config, "stop_at_eos", None), MODEL),
            (family.stops_at_eos, TABLE),
        ),
        "end_token_ids": _end_token_ids(model_config, family, given),
    }
    return {**found, **_limits(given, found)}


def _limits(given: MaskedDiffusionConfig, found: dict[str, Setting]) -> dict[str, Setting]:
    """What bounds a request's work. What holds for all requests is within the bounds."""
    limits = {name: _first((getattr(given, name), GIVEN), (most, DEFAULT)) for name, most in LIMITS.items()}
    if given.n_limit is None:
        limits["n_limit"] = Setting(None, f"half of max_num_seqs, {LIMITS['n_limit']} at most")
    for name, limit in (("steps", "steps_limit"), ("max_post_steps", "post_steps_limit")):
        value = found[name].value if name in found else None
        if value is None or value <= limits[limit].value:
            continue
        if limits[limit].source == GIVEN and (name != "steps" or value > found["block_length"].value):
            raise ValueError(
                f"diffusion_config: {name}={value} ({found[name].source}) must be at most "
                f"{limit}={limits[limit].value}."
            )
        limits[limit] = Setting(value, found[name].source)
    return limits


def _likelihood(family: Family, given: MaskedDiffusionConfig) -> Setting:
    """The estimator of a prompt's log probabilities, of a family that has any."""
    if is_scored(family):
        return _first((given.likelihood, GIVEN), ("left_to_right", DEFAULT))
    if given.likelihood is not None:
        raise ValueError(
            f"diffusion_config: likelihood={given.likelihood!r} has no effect on {family.name} models, which "
            "give no log probabilities of a prompt."
        )
    return Setting(None, "the family has no such setting")


def _kind(family: Family, given: Any, otherwise: Any) -> Setting:
    """A setting that tells apart checkpoints whose files do not."""
    if family.block_causal_loop is None:
        return Setting(None, "the family has no such setting")
    return _first((given, GIVEN), (otherwise, TABLE))


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
    return _first((given, GIVEN), (published.get(name), GENERATION), (otherwise, TABLE))


def published_defaults(model_config: ModelConfig, family: Family) -> tuple[dict[str, Any], list[str]]:
    """What the ``generation_config.json`` of a masked-diffusion checkpoint says of denoising.

    Args:
        model_config: The model.
        family: Its family.

    Returns:
        Settings with their values, and keys that have no counterpart.

    Raises:
        ValueError: A number is out of its range.
    """
    if family.mask_token_id is None:
        return {}, []  # Its keys are its policy's numbers.
    found, unserved = generation_settings(
        checkpoint_files(model_config).generation_config, family, built_in_policies()
    )
    for name, one in {**built_in_numbers(), "steps": _STEPS, **_LENGTHS}.items():
        if name in found:
            try:
                found[name] = one.parse(found[name])
            except ValueError as error:
                raise ValueError(f"generation_config.json: {name}={found[name]!r} {error}.") from None
    if found or unserved:
        logger.info_once(
            "%s: of denoising, generation_config.json sets %s%s.",
            family.name,
            ", ".join(f"{name}={value!r}" for name, value in found.items()) or "nothing that is a default",
            f"; not read: {', '.join(unserved)}" if unserved else "",
        )
    return found, unserved


def _mask_token_id(
    model_config: ModelConfig, family: Family, given: MaskedDiffusionConfig, published: int | None
) -> Setting:
    """The mask token; the tokenizer's where the family's is of a larger vocabulary."""
    if family.mask_token_id is None:
        if given.mask_token_id is not None:
            raise ValueError(
                f"diffusion_config: mask_token_id={given.mask_token_id} has no effect on {family.name} "
                "models, whose open positions hold random tokens."
            )
        return Setting(None, "the family has no mask")
    found = _first(
        (given.mask_token_id, GIVEN),
        (getattr(model_config.hf_config, "mask_token_id", None), MODEL),
        (published, GENERATION),
        (family.mask_token_id, TABLE),
    )
    vocab_size = model_config.get_vocab_size()
    unfit = found.source == TABLE and not 0 <= found.value < vocab_size
    if unfit and not model_config.skip_tokenizer_init:
        from vllm.tokenizers import cached_tokenizer_from_config

        own = getattr(cached_tokenizer_from_config(model_config), "mask_token_id", None)
        found = found if own is None else Setting(own, TOKENIZER)
    if found.value == IN_TOKENIZER:
        raise ValueError(
            f"mask_token_id is in no file of this {family.name} checkpoint: its tokenizer names no mask "
            "token. Set it with --diffusion-config '{\"mask_token_id\": ID}'."
        )
    if not 0 <= found.value < vocab_size:
        raise ValueError(
            f"mask_token_id={found.value} ({found.source}) is outside the vocabulary of "
            f"{vocab_size} tokens. Set it in the model's config.json or with "
            "--diffusion-config '{\"mask_token_id\": ID}'."
        )
    return found


def _number(given: MaskedDiffusionConfig, family: Family, name: str, published: float | None) -> Setting:
    """A number of a policy: the operator's, else the checkpoint's, the family's, the policy's own."""
    return _first(
        (given.numbers.get(name), GIVEN),
        (published, GENERATION),
        (getattr(family, name, None), TABLE),
        (None, "the algorithm's"),
    )


def _published(model_config: ModelConfig, policy: UnmaskingPolicy) -> dict[str, Setting]:
    """What the generation config of a family without a mask says of its decoding.

    Raises:
        ValueError: It names a sampler that is not known, or a number out of range.
    """
    generation = model_config.try_get_generation_config()
    sampler = generation.get("sampler_config") or {}
    kind = sampler.get("_cls_name", "EntropyBoundSamplerConfig")
    if kind != "EntropyBoundSamplerConfig":
        raise ValueError(f"generation_config.json: sampler_config={kind!r} is not known.")
    known = {**policy.numbers, "max_denoising_steps": _STEPS}
    found = {name: {**generation, **sampler}.get(name) for name in known}
    settings = {}
    for name, value in found.items():
        if value is None:
            continue
        try:
            parsed = known[name].parse(value)
        except ValueError as error:
            raise ValueError(f"generation_config.json: {name}={value!r} {error}.") from None
        settings["steps" if name == "max_denoising_steps" else name] = Setting(parsed, GENERATION)
    return settings


def _of_model(hf_config: Any, given: MaskedDiffusionConfig, name: str) -> Setting:
    """An id that a model has or has not; the flag cannot say another."""
    own, asked = getattr(hf_config, name, None), getattr(given, name)
    if asked not in (None, own):
        raise ValueError(f"diffusion_config: {name}={asked} must be the model's own, {own}.")
    return Setting(own, MODEL if own is not None else "the model has none")


def _first_end_token(hf_config: Any) -> int | None:
    """The end token that a configuration names, the first if it names several."""
    ids = getattr(hf_config, "eos_token_id", None)
    return (ids[0] if ids else None) if isinstance(ids, list) else ids


def _delete_token_id(hf_config: Any, given: MaskedDiffusionConfig, family: Family) -> Setting:
    """The id that deletes; where answers grow, their end token."""
    if family.name not in ELASTIC:
        return _of_model(hf_config, given, "delete_token_id")
    end, asked = hf_config.eos_token_id, given.delete_token_id
    if not isinstance(end, int) or asked not in (None, end):
        what = f"delete_token_id={asked}" if isinstance(end, int) else f"eos_token_id={end!r}"
        raise ValueError(f"{what} must be one id: the end token of {family.name} models deletes.")
    return Setting(end, f"{MODEL}, eos_token_id")


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
    return _first((given.mode, GIVEN), ("autoregressive" if writes else None, MODEL), ("diffusion", TABLE))


def _end_think_token_id(model_config: ModelConfig, family: Family, given: MaskedDiffusionConfig) -> Setting:
    """The token that ends the thinking, of a family that takes a thinking budget."""
    if family.name not in SEEDED:
        return Setting(None, "the family has no such setting")
    if given.end_think_token_id is not None or model_config.skip_tokenizer_init:
        return Setting(given.end_think_token_id, GIVEN)
    from vllm.tokenizers import cached_tokenizer_from_config

    return Setting(cached_tokenizer_from_config(model_config).get_vocab().get("</think>"), TOKENIZER)


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


def _first(*candidates: tuple[Any, str]) -> Setting:
    """The first candidate that has a value; else the last one."""
    return Setting(*next((c for c in candidates if c[0] is not None), candidates[-1]))
