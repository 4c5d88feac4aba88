# SPDX-License-Identifier: Apache-2.0
"""What ``--diffusion-config`` accepts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import ArgsKwargs

from vllm.config.diffusion import DiffusionConfig
from vllm.config.utils import config
from vllm.v1.diffusion.policies import get_policy
from vllm.v1.diffusion.policies.parameter import (
    BlockLength,
    CacheMode,
    Estimator,
    PositiveCount,
    Rows,
    Seed,
)
from vllm.v1.diffusion.policies.registry import built_in_numbers

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

    rows: Rows | None = None
    """Block-causal families: which positions of its block a step computes, unless a request says."""

    row_candidates: PositiveCount | None = None
    """Block-causal families, with elastic rows: masked positions that a step computes."""

    likelihood: Estimator | None = None
    """How a prompt's log probabilities are estimated for a request that does not say."""

    score_samples: PositiveCount | None = None
    """Bidirectional families: samples of ``monte_carlo`` for a request that does not say."""

    score_seed: Seed | None = None
    """Bidirectional families: seed of its draws for a request that does not say."""

    head_quantization: Literal["fp8"] | None = None
    """In what the LM head's weights are read, on GPUs of compute capability 9.0; unset: as upstream has
    them, which leaves the head alone when it quantises the layers."""

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

    repetition_limit: _Limit | None = None
    """Greatest product of the counts of a grammar's nested repetitions between which nothing has to stand,
    times the answers that the request asks for (``n``)."""

    grammar_time_limit: _Limit | None = None
    """Milliseconds of a processor that a grammar may take for each token of an answer, on average."""

    n_limit: _Limit | None = None
    """Most answers that a request may ask for at a time (``n``)."""

    score_samples_limit: PositiveCount | None = None
    """Most samples of ``monte_carlo`` that a request may ask for."""

    candidates_limit: _Limit | None = None
    """Most candidates that a request may ask for (``diffusion_trace_top_k``): tokens times steps per block
    times candidates."""

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
