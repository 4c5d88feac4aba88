# SPDX-License-Identifier: Apache-2.0
"""Per-request parameters of diffusion decoding, and their checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from vllm.v1.diffusion.families import BIDIRECTIONAL, ELASTIC, ELASTIC_ROWS, END_OF_TURN, SCORED, SEEDED
from vllm.v1.diffusion.policies.parameter import (
    PREFIX,
    BlockLength,
    CacheMode,
    Count,
    Estimator,
    Flag,
    Parameter,
    PositiveCount,
    Rows,
    Seed,
    Share,
    Watched,
)
from vllm.v1.diffusion.policies.registry import (
    built_in_numbers,
    built_in_policies,
    check_importable,
    get_policy,
    known_policies,
)
from vllm.v1.diffusion.request.fields import ParameterError, naming, require

if TYPE_CHECKING:
    from collections.abc import Collection

    from vllm.sampling_params import SamplingParams
    from vllm.v1.diffusion.config import MaskedDiffusionConfig
    from vllm.v1.diffusion.policies.base import UnmaskingPolicy

_Name = Annotated[str, Field(description="the name of an unmasking policy")]
_Mode = Literal["diffusion", "autoregressive", "self_speculation"]
_Budget = Annotated[int, Field(ge=0, le=999999)]
_Index = Annotated[int, Field(ge=0, le=2**31 - 1)]
_Guidance = Annotated[float, Field(ge=0, le=100)]
_Template = Annotated[str, Field(description="a text with holes")]
_Ids = Annotated[
    Sequence[Annotated[int, Field(ge=-1)]],
    Field(min_length=1, description="a list of token ids, -1 for a hole"),
]
_Seed = Annotated[
    Sequence[Annotated[int, Field(ge=0)]], Field(min_length=1, description="a list of token ids")
]
_Positions = Annotated[
    Sequence[Annotated[int, Field(ge=0)]], Field(description="a list of positions in diffusion_seed_canvas")
]


class DiffusionParams(BaseModel):
    """How one request is denoised; what is not given takes the engine's default.

    ``DiffusionParams(steps=2).sampling_params(temperature=0)`` makes the parameters of a request;
    over HTTP the keys of :meth:`to_extra_args` are members of ``vllm_xargs``. The numbers of the
    unmasking policies are given beside the fields, by name: ``DiffusionParams(threshold=0.8)``,
    and those of another package's policy beside its ``algorithm``.
    ``docs/parameters.md`` lists all of them with range, default and families.

    Raises:
        ParameterError: A ``ValueError`` that names the parameter, its value and what is allowed.
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    algorithm: Annotated[
        _Name | None,
        Parameter(
            "The unmasking policy: which positions a step unmasks.",
            otherwise="`--diffusion-config`, else the family's",
        ),
    ] = None
    steps: Annotated[
        PositiveCount | None,
        Parameter(
            "Denoising steps per block.",
            otherwise="`--diffusion-config`, else as many as the block has tokens; "
            "1 with `confidence_threshold`",
        ),
    ] = None
    block_length: Annotated[
        BlockLength | None,
        Parameter(
            "Tokens per block; a divisor of the served block length, or, where blocks begin where the "
            "prompt ends, any length up to it.",
            otherwise="the served block length",
            aliases=("canvas_length",),
        ),
    ] = None
    cache: Annotated[
        CacheMode | None,
        Parameter(
            "What is reused between the steps of a block: nothing, the keys and values before it, or "
            "those before and after it.",
            otherwise="`--diffusion-config`, else `none`",
            families=BIDIRECTIONAL,
        ),
    ] = None
    rows: Annotated[
        Rows | None,
        Parameter(
            "Which positions of its block a step computes: all of them, or, after the first step, those that "
            "the step before unmasked and the masked ones that are likely to be unmasked now. The others "
            "keep the keys and values that they have. `elastic` is faster where many requests run, and "
            "approximate; it is for `low_confidence_static`, `sequential`, `low_confidence_dynamic` and "
            "`threshold`.",
            otherwise="`--diffusion-config`, else `exact`",
            families=ELASTIC_ROWS,
        ),
    ] = None
    row_candidates: Annotated[
        PositiveCount | None,
        Parameter(
            "With `diffusion_rows` `elastic`: masked positions that a step computes, those that were most "
            "confident when they were computed last. A step that unmasks more computes as many as these.",
            otherwise="`--diffusion-config`, else 12",
            families=ELASTIC_ROWS,
        ),
    ] = None
    cfg_scale: Annotated[
        _Guidance | None,
        Parameter(
            "Classifier-free guidance. Every step also computes the answer behind a masked prompt, and moves "
            "the logits away from what that says: `u + (cfg_scale + 1) * (c - u)`, `c` with the prompt and "
            "`u` without. 0 switches it off.",
            otherwise="0",
            families=BIDIRECTIONAL,
        ),
    ] = None
    max_steps: Annotated[
        PositiveCount | None,
        Parameter(
            "Most denoising steps per block; the last of them unmasks all that is left.",
            otherwise="no limit",
        ),
    ] = None
    mode: Annotated[
        _Mode | None,
        Parameter(
            "How the checkpoint is used: blocks are denoised; one token is written after the other; or "
            "blocks are drafts that a causal pass verifies, which gives the tokens of `autoregressive`.",
            otherwise="`--diffusion-config`, else the checkpoint's (`ar_mode`), else `diffusion`",
            families=SEEDED,
        ),
    ] = None
    causal_context: Annotated[
        Flag | None,
        Parameter(
            "Whether prompt and finished blocks are encoded causally. If not, each sees all of itself, and "
            "no token is predicted from them.",
            otherwise="true",
            families=SEEDED,
        ),
    ] = None
    seed_token: Annotated[
        Flag | None,
        Parameter(
            "Whether a block's first token is what the causal pass before it predicts, as in the card's "
            "code. If not, it is denoised like the others and the mask token counts for nothing, as in "
            "vLLM's code.",
            otherwise="true; false without a causal context",
            families=SEEDED,
        ),
    ] = None
    max_thinking_tokens: Annotated[
        _Budget | None,
        Parameter(
            "Tokens of the answer behind which the end of the thinking is written, if it has not been.",
            otherwise="no limit",
            families=SEEDED,
        ),
    ] = None
    end_think_token_id: Annotated[
        _Budget | None,
        Parameter(
            "Id of the token that ends the thinking; only with `diffusion_max_thinking_tokens`.",
            otherwise="`--diffusion-config`, else the tokenizer's `</think>`",
            families=SEEDED,
        ),
    ] = None
    expand_budget: Annotated[
        Count | None,
        Parameter(
            "How often the model may put two masks in the place of one.",
            otherwise="twice the tokens that the answer may have",
            families=ELASTIC,
        ),
    ] = None
    exit_threshold: Annotated[
        Share | None,
        Parameter(
            "Early exit: a block whose masked positions all reach this confidence is unmasked at once.",
            otherwise="no early exit",
        ),
    ] = None
    eos_early_stop: Annotated[
        Flag | None,
        Parameter(
            "Early exit: a block ends as soon as it holds an end token (or one of `stop_token_ids`) and "
            "no mask before it. What is returned stays the same.",
            otherwise="false; true for Nemotron-Labs-Diffusion, unless `diffusion_seed_token` is false",
        ),
    ] = None
    end_tokens_last: Annotated[
        Flag | None,
        Parameter(
            "End tokens are unmasked last: their confidence is zero, and the others' is that of the "
            "softmax without them.",
            otherwise="false",
            aliases=("confidence_eos_eot_inf",),
            families=END_OF_TURN,
        ),
    ] = None
    read_only: Annotated[
        Flag | None,
        Parameter(
            "One canvas, or block, is the whole answer: `max_tokens` is its length at most, and an end token "
            "ends nothing.",
            otherwise="false",
        ),
    ] = None
    constrained: Annotated[
        Flag | None,
        Parameter(
            "Only the ids of `logprob_token_ids` are written, and log probabilities are those among them.",
            otherwise="false",
        ),
    ] = None
    trace: Annotated[
        Flag | None,
        Parameter(
            "Adds `trace` and `entropies` to what is reported of the denoising: for every token the "
            "denoising step of the request that unmasked it, its probability in that step, and the "
            "entropy in nats of the distribution that the probability is of. A token that `edit` rewrote "
            "has the step that first unmasked its position, and the probability and entropy of the step "
            "that wrote it last. A token that an insertion or a deletion moved has the step that moved "
            "it.",
            otherwise="false",
        ),
    ] = None
    stream: Annotated[
        Watched | None,
        Parameter(
            "What a stream sends beside the chunks of finished blocks. With `steps`, the open block as it "
            "stands after every denoising step, in chunks of their own: the text of each position, and which "
            "positions are open. Only where a response is streamed.",
            otherwise="nothing",
        ),
    ] = None
    stats: Annotated[
        Flag | None,
        Parameter(
            "Adds `steps`, `tokens_per_forward` and `steps_per_block` to a choice's `diffusion` in a "
            "response of the server. In Python, `CompletionOutput.diffusion` always has them.",
            otherwise="false",
        ),
    ] = None
    likelihood: Annotated[
        Estimator | None,
        Parameter(
            "How the prompt's log probabilities are estimated, for `prompt_logprobs` or `echo` with "
            "`logprobs`: each position with all later ones of its block masked (of its canvas, where the "
            "model is bidirectional), which is a chain rule; all of a block masked at once, in one step; or, "
            "on bidirectional models, random parts of the text masked at once, sample after sample.",
            otherwise="`--diffusion-config`, else `left_to_right`",
            families=SCORED,
        ),
    ] = None
    score_from: Annotated[
        _Index | None,
        Parameter(
            "Index of the first token of the prompt that is scored; the tokens before it have no log "
            "probabilities and cost no steps. Only with `prompt_logprobs`, or `echo` with `logprobs`.",
            otherwise="the prompt's second token, 1",
            families=SCORED,
        ),
    ] = None
    score_samples: Annotated[
        PositiveCount | None,
        Parameter(
            "Samples of `monte_carlo`.",
            otherwise="`--diffusion-config`, else 128",
            families=BIDIRECTIONAL,
        ),
    ] = None
    score_seed: Annotated[
        Seed | None,
        Parameter(
            "Seed of the draws of `monte_carlo`.",
            otherwise="`--diffusion-config`, else 0",
            families=BIDIRECTIONAL,
        ),
    ] = None
    infill: Annotated[
        _Template | None,
        Parameter(
            "A template, which is the whole answer: text in which `<|hole:16|>` is a hole of 16 tokens to "
            "be written. Every piece of text between holes is tokenised alone and kept as it is.",
            otherwise="none",
        ),
    ] = None
    infill_ids: Annotated[
        _Ids | None,
        Parameter(
            "A template in token ids, of any length. A hole is -1, once for each token to be written.",
            otherwise="none",
        ),
    ] = None
    seed_canvas: Annotated[
        _Seed | None,
        Parameter(
            "Upstream's way to write `diffusion_infill_ids`: holes hold the mask token.", otherwise="none"
        ),
    ] = None
    pinned: Annotated[
        _Positions | None,
        Parameter(
            "The positions of `diffusion_seed_canvas` that are kept. All others are holes, whatever id is "
            "there.",
            otherwise="all that do not hold the mask token",
        ),
    ] = None

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            algorithm: str | None = None,
            steps: int | None = None,
            block_length: int | None = None,
            cache: CacheMode | None = None,
            rows: Rows | None = None,
            row_candidates: int | None = None,
            cfg_scale: float | None = None,
            max_steps: int | None = None,
            mode: Literal["diffusion", "autoregressive", "self_speculation"] | None = None,
            causal_context: bool | None = None,
            seed_token: bool | None = None,
            max_thinking_tokens: int | None = None,
            end_think_token_id: int | None = None,
            expand_budget: int | None = None,
            exit_threshold: float | None = None,
            eos_early_stop: bool | None = None,
            end_tokens_last: bool | None = None,
            read_only: bool | None = None,
            constrained: bool | None = None,
            trace: bool | None = None,
            stream: Watched | None = None,
            stats: bool | None = None,
            likelihood: Estimator | None = None,
            score_from: int | None = None,
            score_samples: int | None = None,
            score_seed: int | None = None,
            infill: str | None = None,
            infill_ids: Sequence[int] | None = None,
            seed_canvas: Sequence[int] | None = None,
            pinned: Sequence[int] | None = None,
            **numbers: float | None,
        ) -> None: ...

    else:

        def __init__(self, **given: Any) -> None:
            super().__init__(**_parsed(given, None))

    @property
    def numbers(self) -> Mapping[str, float]:
        """The policies' numbers that are given, by name."""
        return self.model_extra or {}

    def to_extra_args(self) -> dict[str, Any]:
        """The parameters that are given, as members of ``SamplingParams.extra_args``."""
        return {PREFIX + name: value for name, value in self if value is not None}

    def sampling_params(self, **given: Any) -> SamplingParams:
        """Makes the parameters of a request.

        Args:
            **given: Those of ``SamplingParams``. Members of ``extra_args`` are kept.

        Raises:
            ParameterError: ``extra_args`` say otherwise, or ``max_tokens`` are fewer than the
                template's.
        """
        from vllm.sampling_params import SamplingParams

        extra = given.pop("extra_args", None) or {}
        own = self.to_extra_args()
        for key, value in extra.items():
            name = PREFIX + canonical(str(key).removeprefix(PREFIX))
            if str(key).startswith(PREFIX) and own.get(name, value) != value:
                raise ParameterError(
                    f"extra_args has {key}={value!r}, DiffusionParams has {name}={own[name]!r}; give one.",
                    parameter=key,
                    value=value,
                )
        template = self.infill_ids if self.seed_canvas is None else self.seed_canvas
        asked = given.get("max_tokens")
        if template is not None and asked is not None:
            check_max_tokens(asked, len(template))
        if template is not None or self.infill is not None:
            # The template is the whole answer. SamplingParams' own default would stand for a limit.
            given.setdefault("max_tokens", None)
        return SamplingParams(**given, extra_args={**extra, **own})

    @classmethod
    def from_extra_args(
        cls, extra_args: Mapping[str, Any] | None, policy: UnmaskingPolicy | None = None
    ) -> DiffusionParams:
        """Reads ``SamplingParams.extra_args``.

        Keys without the prefix are a plug-in's; :func:`check_extra_args` knows them.

        Args:
            extra_args: The keys and values.
            policy: The policy whose numbers they may hold; None for the one that they name.

        Raises:
            ParameterError: A key with the prefix is unknown, or a value is not allowed.
        """
        given = {str(k).removeprefix(PREFIX): v for k, v in (extra_args or {}).items() if _is_ours(k)}
        return cls.model_construct(**_parsed(given, policy))


def fields() -> dict[str, Parameter]:
    """The parameters that every request may have, by name."""
    return dict(_FIELDS)


def parameters() -> dict[str, Parameter]:
    """All parameters that come with this package, by name: the fields and the policies' numbers."""
    return {**_FIELDS, **built_in_numbers()}


def canonical(name: str) -> str:
    """A parameter's own name, for it or an alias, without the prefix."""
    return _aliases().get(name, name)


def check_max_tokens(max_tokens: int, length: int) -> None:
    """Refuses a limit that would cut a template.

    Raises:
        ParameterError: Names ``max_tokens``.
    """
    if max_tokens < length:
        raise ParameterError(
            f"max_tokens={max_tokens} must not be below the {length} tokens of the template, which is the "
            "whole answer. It need not be given.",
            parameter="max_tokens",
            value=max_tokens,
        )


def check_extra_args(
    extra_args: Mapping[str, Any] | None, own: Collection[str], config: MaskedDiffusionConfig
) -> None:
    """Refuses at admission keys without a reader, and policies that must not be imported.

    Args:
        extra_args: A request's ``SamplingParams.extra_args``.
        own: Keys that the generation loop reads beside those of ``DiffusionParams``.
        config: The engine's resolved configuration.

    Raises:
        ParameterError: Names the first such key.
    """
    for key, value in (extra_args or {}).items():
        if not _is_ours(key) and key not in own:
            raise _without_effect(key, value, [*sorted(own), *(PREFIX + name for name in parameters())])
    algorithm = (extra_args or {}).get(PREFIX + "algorithm")
    if isinstance(algorithm, str):
        with naming("algorithm", algorithm):
            check_importable(algorithm, config.algorithm or "")


def _records() -> Iterator[tuple[str, Parameter]]:
    """What the fields' annotations say: the type without None is the record's kind."""
    for name, field in DiffusionParams.model_fields.items():
        (record,) = (one for one in field.metadata if isinstance(one, Parameter))
        kind = next(one for one in get_args(field.annotation) if one is not type(None))
        yield name, replace(record, kind=kind)


_FIELDS: Mapping[str, Parameter] = dict(_records())


@cache
def _aliases() -> Mapping[str, str]:
    return {alias: name for name, one in parameters().items() for alias in one.aliases}


def _is_ours(key: object) -> bool:
    return str(key).startswith(PREFIX)


def _parsed(given: Mapping[str, Any], policy: UnmaskingPolicy | None) -> dict[str, Any]:
    """Checks values by the records of their names, which may be aliases; None stands for not given."""
    given = {name: value for name, value in given.items() if value is not None}
    algorithm = given.get("algorithm")
    if policy is None and isinstance(algorithm, str):
        policy = _named(algorithm, given)
    numbers = built_in_numbers() if policy is None else {**built_in_numbers(), **policy.numbers}
    if taken := sorted(numbers.keys() & (_FIELDS.keys() | _aliases().keys())):
        with naming("algorithm", algorithm):
            raise ValueError(
                f"diffusion_algorithm={algorithm!r} has numbers of a name that is taken: {', '.join(taken)}."
            )
    records = {**_FIELDS, **numbers}
    aliases = {alias: name for name, one in records.items() for alias in one.aliases}
    values: dict[str, Any] = {}
    for written, value in given.items():
        name = aliases.get(written, written)
        if name not in records:
            raise _without_effect(PREFIX + written, value, [PREFIX + known for known in records])
        try:
            parsed = records[name].parse(value)
        except ValueError as error:
            require(False, written, value, str(error))
        require(
            values.setdefault(name, parsed) == parsed,
            written,
            value,
            f"contradicts {PREFIX}{name}={values[name]!r}, of which it is another name",
        )
    return values


def _named(algorithm: str, given: Mapping[str, Any]) -> UnmaskingPolicy | None:
    """The policy that a caller names; no package is imported unless a number of its own is given."""
    known = known_policies()
    require(
        algorithm in known or "." in algorithm,
        "algorithm",
        algorithm,
        f"must be one of {', '.join(known)}, or a dotted path to a class",
    )
    if algorithm in built_in_policies() or given.keys() <= _FIELDS.keys():
        return None
    with naming("algorithm", algorithm):
        return get_policy(algorithm)


def _without_effect(key: str, value: Any, known: Collection[str]) -> ParameterError:
    return ParameterError(
        f"{key} has no effect on this model. Known: {', '.join(known)}.", parameter=key, value=value
    )
