# SPDX-License-Identifier: Apache-2.0
"""Per-request parameters of diffusion decoding, and their checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vllm.v1.diffusion.families import BIDIRECTIONAL, END_OF_TURN
from vllm.v1.diffusion.infill import template_of
from vllm.v1.diffusion.parameter_fields import (
    PREFIX,
    Flag,
    Integers,
    Name,
    Number,
    ParameterError,
    Text,
    parameter,
    parameters,
    require,
)
from vllm.v1.diffusion.policies import UnmaskingPolicy, built_in_policies, get_policy
from vllm.v1.diffusion.policies.registry import check_importable

if TYPE_CHECKING:
    from collections.abc import Container

    from vllm.sampling_params import SamplingParams
    from vllm.v1.diffusion.config import MaskedDiffusionConfig

_MOST_STEPS = 32768
"""More than any block has positions; a step's number must fit beside a position's in 64 bits."""
_OWN = Number(low=-1e30, high=1e30)
"""What a policy's own numbers may be."""


@dataclass(frozen=True, kw_only=True)
class DiffusionParams:
    """How one request is denoised; what is None takes the engine's default.

    ``SamplingParams(extra_args=DiffusionParams(steps=2).to_extra_args())``; over
    HTTP the same keys are members of ``vllm_xargs``. Each field's range, default and
    families stand beside it; ``docs/parameters.md`` is made from them.
    """

    algorithm: str | None = parameter(
        "The unmasking policy: which positions a step settles.",
        Text("the name of an unmasking policy"),
        default="`--diffusion-config`, else the family's",
    )
    steps: int | None = parameter(
        "Denoising steps a block.",
        Number(low=1, high=_MOST_STEPS, whole=True),
        default="`--diffusion-config`, else as many as the block has tokens",
    )
    block_length: int | None = parameter(
        "Tokens a block; a divisor of the served block length, or, with bidirectional models, up to it.",
        Number(low=1, whole=True),
        default="the served block length",
    )
    threshold: float | None = parameter(
        "Confidence from which a position is settled.",
        Number(low=0, high=1),
        default="`--diffusion-config`, else the family's",
    )
    factor: float | None = parameter(
        "Fast-dLLM's factor: the more positions a step settles, the surer each must be.",
        Number(above=0),
        default="must be given",
    )
    entropy_bound: float | None = parameter(
        "Bound on the summed entropy of the positions that a step settles, in nats.",
        Number(above=0),
        default="`--diffusion-config`, else the family's",
    )
    alg_temperature: float | None = parameter(
        "Positions are drawn by their score at this temperature; 0 takes the best.",
        Number(low=0),
        default="0",
    )
    eps: float | None = parameter(
        "Time at which the timetable of Dream's algorithms ends.",
        Number(above=0, high=1),
        default="0.001",
    )
    cache: str | None = parameter(
        "What is reused between the steps of a block: nothing, the keys and values before it, or those "
        "before and after it.",
        Name(("none", "prefix", "dual")),
        default="`--diffusion-config`, else `none`",
        families=BIDIRECTIONAL,
    )
    edit_threshold: float | None = parameter(
        "Probability above which a settled token is rewritten.",
        Number(low=0, high=1),
        default="`--diffusion-config`, else 0.9",
    )
    low_threshold: float | None = parameter(
        "Confidence above which the best position of a run of masks is settled.",
        Number(low=0, high=1),
        default="`--diffusion-config`, else 0.4",
    )
    max_post_steps: int | None = parameter(
        "Steps that a block may take after its last mask, to rewrite tokens.",
        Number(low=0, high=_MOST_STEPS, whole=True),
        default="`--diffusion-config`, else 16",
    )
    max_steps: int | None = parameter(
        "Most denoising steps a block; the last of them settles all that is left.",
        Number(low=1, high=_MOST_STEPS, whole=True),
        default="no limit",
    )
    exit_threshold: float | None = parameter(
        "Early exit: a block whose masked positions all reach this confidence is settled at once.",
        Number(low=0, high=1),
        default="no early exit",
    )
    eos_early_stop: bool | None = parameter(
        "Early exit: a block ends as soon as it holds an end token (or one of `stop_token_ids`) and no "
        "mask before it. What is returned stays the same.",
        Flag(),
        default="false",
    )
    confidence_eos_eot_inf: bool | None = parameter(
        "End tokens are settled last: their confidence is zero, and the others' is that of the softmax "
        "without them.",
        Flag(),
        default="false",
        families=END_OF_TURN,
    )
    trace: bool | None = parameter(
        "Tell for every token which denoising step of the request settled it, and its probability "
        "in that step: `CompletionOutput.unmask_trace`, and a choice's `diffusion.trace` in a response.",
        Flag(),
        default="false",
    )
    stats: bool | None = parameter(
        "Tell the request's denoising steps, tokens per forward and steps of each block: a choice's "
        "`diffusion` in a response, `CompletionOutput.spec_decode_metrics.per_step_accepted` in Python.",
        Flag(),
        default="false",
    )

    infill: str | None = parameter(
        "A template, which is the whole answer: text in which `<|hole:16|>` is a hole of 16 tokens to be "
        "written. Every piece of text between holes is tokenised alone and kept as it is.",
        Text("a text with holes"),
        default="none",
    )
    seed_canvas: Sequence[int] | None = parameter(
        "A template in token ids, of any length; holes hold the mask token.",
        Integers("token ids", least=1),
        default="none",
    )
    pinned: Sequence[int] | None = parameter(
        "The positions of `diffusion_seed_canvas` that are kept. All others are holes, whatever id is there.",
        Integers("positions in diffusion_seed_canvas"),
        default="all that do not hold the mask token",
    )

    def to_extra_args(self) -> dict[str, Any]:
        """The parameters that are set, as ``SamplingParams.extra_args``."""
        values = {p.key: getattr(self, p.name) for p in parameters(self)}
        return {key: value for key, value in values.items() if value is not None}

    @classmethod
    def from_extra_args(cls, extra_args: dict[str, Any] | None) -> DiffusionParams:
        """Reads ``SamplingParams.extra_args``.

        Keys without the prefix are a plug-in's; :func:`check_extra_args` knows them.

        Raises:
            ParameterError: A key with the prefix is unknown.
        """
        known = {p.key: p.name for p in parameters(cls)}
        values = {}
        for key, value in (extra_args or {}).items():
            if key in known:
                values[known[key]] = value
            elif key.startswith(PREFIX):
                raise _without_effect(key, value)
        return cls(**values)


@dataclass(frozen=True)
class Decoding:
    """How a request is denoised, with every default filled in.

    Attributes:
        values: The further numbers that the algorithm reads.
        max_steps: Most denoising steps a block; None for no limit.
        exit_threshold: Confidence at which a whole block is settled; None for never.
        stop_ids: Tokens that end a block, as they end the text; empty for none.
        constrained: Whether a grammar decides along which positions settle.
        vetoes: Whether a step may take back what it settled (bad words of several
            tokens).
        late_ids: Tokens that are settled last; empty for none.
        template: The whole answer, ``infill.HOLE`` where a token is to be written.
    """

    algorithm: str
    steps: int
    block_length: int
    threshold: float
    trace: bool
    stats: bool = False
    values: Mapping[str, float] = field(default_factory=dict)
    cache: str | None = None
    max_steps: int | None = None
    exit_threshold: float | None = None
    stop_ids: tuple[int, ...] = ()
    constrained: bool = False
    vetoes: bool = False
    late_ids: tuple[int, ...] = ()
    template: tuple[int, ...] | None = None

    @property
    def foreseeable(self) -> bool:
        """Whether only the algorithm and ``max_steps`` decide when a block ends."""
        changed = self.vetoes or self.constrained or self.template is not None
        return not changed and self.exit_threshold is None and not self.stop_ids

    @property
    def exits(self) -> bool:
        """Whether a block may end before its algorithm ends it."""
        return self.max_steps is not None or self.exit_threshold is not None or bool(self.stop_ids)

    def within(self, room: int) -> Decoding:
        """The same for a canvas of ``room`` tokens, which may be less than a block.

        A step for every token stays a step for every token.
        """
        if room >= self.block_length:
            return self
        every = self.steps == self.block_length
        return replace(self, block_length=room, steps=room if every else self.steps)


def resolve_decoding(params: SamplingParams | None, config: MaskedDiffusionConfig) -> Decoding:
    """Combines a request's parameters with the engine's defaults.

    Args:
        params: The request's parameters; None stands for none given.
        config: The engine's resolved configuration.

    Raises:
        ParameterError: A parameter is of the wrong type, out of range, or
            has no effect with the algorithm.
    """
    served = config.block_length
    assert served is not None and config.algorithm is not None
    extra = dict(params.extra_args or {}) if params else {}
    algorithm: str = extra.get(PREFIX + "algorithm") or config.algorithm
    policy = _policy(algorithm)
    own = {
        name: extra.pop(PREFIX + name)
        for name in policy.defaults
        if PREFIX + name in extra and not hasattr(DiffusionParams, name)
    }
    given = DiffusionParams.from_extra_args(extra)
    for one in parameters(given):
        one.check(getattr(given, one.name))
    block_length = given.block_length or served
    # Blocks of bidirectional models begin where the prompt ends, whatever their length.
    aligned = config.cache is None
    require(
        served % block_length == 0 if aligned else block_length <= served,
        "block_length",
        block_length,
        f"must {'divide' if aligned else 'not exceed'} the served block length, {served}",
    )
    require(
        given.cache is None or not aligned,
        "cache",
        given.cache,
        "has no effect on this model, whose cache is exact",
    )
    require(
        not given.confidence_eos_eot_inf or bool(config.end_token_ids),
        "confidence_eos_eot_inf",
        given.confidence_eos_eot_inf,
        f"has no effect on this model, but on {', '.join(END_OF_TURN)}",
    )
    for name in sorted(set().union(*(get_policy(name).parameters for name in built_in_policies()))):
        value = getattr(given, name)
        require(
            value is None or name in policy.parameters,
            name,
            value,
            f"has no effect with diffusion_algorithm={algorithm!r}, which reads "
            f"{', '.join(sorted(policy.parameters)) or 'no parameters'}",
        )
    name = policy.threshold_parameter
    threshold = getattr(given, name, None)
    if threshold is None:
        threshold = getattr(config, name, None)
    require(
        threshold is not None or name not in policy.parameters,
        name,
        None,
        f"must be given with diffusion_algorithm={algorithm!r}",
    )
    constrained = params is not None and params.structured_outputs is not None
    require(
        not (constrained and policy.rewrites),
        "algorithm",
        algorithm,
        "is not supported with structured_outputs: it rewrites tokens that the grammar has read",
    )
    values = {}
    for name, default in policy.defaults.items():
        value = own.get(name, getattr(given, name, None))
        require(value is None or value in _OWN, name, value, f"must be {_OWN}")
        values[name] = float(_first(value, getattr(config, name, None), default))
    assert config.mask_token_id is not None
    template = template_of(given, config.mask_token_id)
    name = "seed_canvas" if given.infill is None else "infill"
    require(
        template is None or not constrained,
        name,
        getattr(given, name),
        "and structured_outputs (response_format, tool_choice) exclude each other",
    )
    return Decoding(
        algorithm=algorithm,
        steps=given.steps or config.steps or policy.default_steps or block_length,
        block_length=block_length,
        threshold=float(threshold or 0.0),
        trace=bool(given.trace),
        stats=bool(given.stats),
        values=values,
        cache=given.cache or config.cache,
        max_steps=given.max_steps,
        exit_threshold=given.exit_threshold,
        constrained=constrained,
        template=template,
        vetoes=bool(params and any(len(word) > 1 for word in params.bad_words_token_ids or ())),
        stop_ids=_stop_ids(given, params, policy, config),
        late_ids=tuple(config.end_token_ids or ()) if given.confidence_eos_eot_inf else (),
    )


def _policy(algorithm: Any) -> UnmaskingPolicy:
    require(isinstance(algorithm, str), "algorithm", algorithm, "must be the name of an unmasking policy")
    try:
        return get_policy(algorithm)
    except ValueError as error:
        raise ParameterError(str(error), parameter=PREFIX + "algorithm", value=algorithm) from error


def _stop_ids(
    given: DiffusionParams,
    params: SamplingParams | None,
    policy: UnmaskingPolicy,
    config: MaskedDiffusionConfig,
) -> tuple[int, ...]:
    """The tokens that end a block early."""
    if not given.eos_early_stop or params is None:
        return ()
    name, value = "eos_early_stop", given.eos_early_stop
    require(
        not policy.rewrites,
        name,
        value,
        "has no effect with an algorithm that may still rewrite the end token",
    )
    ids = tuple(params.stop_token_ids or ())
    ignored = params.ignore_eos or config.stop_at_eos is False
    why = "with ignore_eos" if params.ignore_eos else "on a model whose end token ends nothing,"
    require(bool(ids) or not ignored, name, value, f"has no effect {why} and no stop_token_ids")
    return ids if ignored or params.eos_token_id is None else (*ids, params.eos_token_id)


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def check_extra_args(
    extra_args: dict[str, Any] | None, own: Container[str], config: MaskedDiffusionConfig
) -> None:
    """Refuses at admission keys that nobody reads, and policies that must not be imported.

    Args:
        extra_args: A request's ``SamplingParams.extra_args``.
        own: Keys that the generation loop reads beside those of ``DiffusionParams``.
        config: The engine's resolved configuration.

    Raises:
        ParameterError: Names the first such key.
    """
    for key, value in (extra_args or {}).items():
        if not key.startswith(PREFIX) and key not in own:
            raise _without_effect(key, value)
    algorithm = (extra_args or {}).get(PREFIX + "algorithm")
    if isinstance(algorithm, str):
        try:
            check_importable(algorithm, config.algorithm or "")
        except ValueError as error:
            raise ParameterError(str(error), parameter=PREFIX + "algorithm", value=algorithm) from error


def _without_effect(key: str, value: Any) -> ParameterError:
    known = ", ".join(p.key for p in parameters(DiffusionParams))
    return ParameterError(f"{key} has no effect on this model. Known: {known}.", parameter=key, value=value)
