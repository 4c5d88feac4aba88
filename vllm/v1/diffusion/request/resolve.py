# SPDX-License-Identifier: Apache-2.0
"""Combines a request's parameters with the engine's defaults, and refuses what has no effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vllm.v1.diffusion.families import BIDIRECTIONAL, ELASTIC, END_OF_TURN, WITHOUT_TIMETABLE
from vllm.v1.diffusion.policies import UnmaskingPolicy, get_policy
from vllm.v1.diffusion.policies.base import RULE_NUMBERS
from vllm.v1.diffusion.policies.parameter import PREFIX, in_float32
from vllm.v1.diffusion.policies.parts.d3llm import EARLY_STOP
from vllm.v1.diffusion.policies.redrawing.daedal import END_TOKEN_ID
from vllm.v1.diffusion.policies.redrawing.insert_delete import MOST_POST_STEPS
from vllm.v1.diffusion.request.causal import causal_decoding
from vllm.v1.diffusion.request.decoding import Decoding
from vllm.v1.diffusion.request.fields import ParameterError, naming, require
from vllm.v1.diffusion.request.params import DiffusionParams, parameters
from vllm.v1.diffusion.request.row_budget import check_elastic_rows, row_candidates
from vllm.v1.diffusion.request.template import template_of

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams
    from vllm.v1.diffusion.config import MaskedDiffusionConfig

_DRAFTS = "threshold"
"""How drafts are made."""


def resolve_decoding(params: SamplingParams | None, config: MaskedDiffusionConfig) -> Decoding:
    """Combines a request's parameters with the engine's defaults.

    Args:
        params: The request's parameters; None stands for none given.
        config: The engine's resolved configuration.

    Raises:
        ParameterError: A parameter is of the wrong type, out of range, or has no effect
            with the algorithm or on the model.
    """
    assert config.algorithm is not None
    extra = dict(params.extra_args or {}) if params else {}
    asked = extra.get(PREFIX + "algorithm")
    algorithm: str = config.algorithm if asked is None else asked
    if config.expand_token_id is not None:
        algorithm = WITHOUT_TIMETABLE.get(algorithm, algorithm)
    policy = _policy(algorithm)
    given = DiffusionParams.from_extra_args(extra, policy)
    way = causal_decoding(given, params, config)
    if way.verifies:
        algorithm, policy = _DRAFTS, get_policy(_DRAFTS)
    block_length = 1 if way.writes else _block_length(given, config)
    _check_model(given, config)
    _check_growth(given, config)
    _check_guidance(given, config)
    _check_noise(algorithm, policy, config)
    _check_read(given, extra, algorithm, policy)
    steps = given.steps or config.steps or policy.default_steps
    _check_work(given, config, block_length)
    values = _values(given, algorithm, policy, config)
    if way.verifies:
        # All masks of a draft at once, as the card's code does where it is given no threshold.
        values["threshold"] = given.numbers.get("threshold", 0.0)
    _check_edits(given, params, algorithm, policy, config, values)
    if policy.whole_answer:
        _check_bidirectional(algorithm, config)
    if EARLY_STOP in values:
        _check_early_stop(given, values)
    _check_speculation(given, params, algorithm, policy)
    _check_open_blocks(given, params, algorithm, policy)
    if "t_max" in values:
        name = "t_min" if given.numbers.get("t_max") is None else "t_max"
        highest, lowest = values["t_max"], values["t_min"]
        require(highest > lowest, name, values[name], f"must leave t_max={highest:g} above t_min={lowest:g}")
    template = template_of(given, config.mask_token_id)
    constrained = params is not None and params.structured_outputs is not None
    if constrained:
        require(
            not (policy.rewrites and policy.rewrites_text),
            "algorithm",
            algorithm,
            "is not supported with structured_outputs: it rewrites tokens that the grammar has read",
        )
        name = next((n for n in ("infill", "infill_ids") if getattr(given, n) is not None), "seed_canvas")
        require(
            template is None,
            name,
            getattr(given, name),
            "and structured_outputs (response_format, tool_choice) exclude each other",
        )
    decoding = Decoding(
        algorithm=algorithm,
        steps=steps or block_length,
        stepwise=steps is None,
        block_length=block_length,
        threshold=values.get(RULE_NUMBERS.get(policy.rule, ""), 0.0),
        trace=bool(given.trace),
        watched=given.stream is not None,
        values=values,
        cache=given.cache or config.cache,
        max_steps=given.max_steps,
        exit_threshold=given.exit_threshold,
        stop_ids=_stop_ids(given, params, policy, config, early=way.ends_early),
        constrained=constrained,
        vetoes=bool(params and any(len(word) > 1 for word in params.bad_words_token_ids or ())),
        late_ids=tuple(config.end_token_ids or ()) if given.end_tokens_last else (),
        template=template,
        holes=_holes(given, config),
        seeded=way.seeded,
        causal=way.causal,
        verifies=way.verifies,
        drops_mask=way.mode == "diffusion" and way.causal and not way.seeded,
        budget=way.budget,
        expand_budget=given.expand_budget,
        # As the workers keep it: what is 0 there must be 0 for the scheduler.
        guidance=in_float32(given.cfg_scale or 0.0),
        # A template is the whole answer, and seen as a whole.
        canvas=config.max_canvas_length if template is None else None,
        row_candidates=row_candidates(given, config),
    )
    check_elastic_rows(given, params, decoding, config)
    return decoding


def _policy(algorithm: Any) -> UnmaskingPolicy:
    require(isinstance(algorithm, str), "algorithm", algorithm, "must be the name of an unmasking policy")
    with naming("algorithm", algorithm):
        return get_policy(algorithm)


def _block_length(given: DiffusionParams, config: MaskedDiffusionConfig) -> int:
    """Tokens per block, which must fit the served block length."""
    served = config.block_length
    assert served is not None
    block_length = given.block_length or served
    # Blocks that begin where the prompt ends may have any length.
    aligned = config.cache is None and config.mode is None and config.mask_token_id is not None
    require(
        served % block_length == 0 if aligned else block_length <= served,
        "block_length",
        block_length,
        f"must {'divide' if aligned else 'not exceed'} the served block length, {served}",
    )
    require(
        config.pooled_block_length is None or block_length == served,
        "block_length",
        block_length,
        f"must be {served}: the tokens of a block choose their experts together",
    )
    return block_length


def _check_work(given: DiffusionParams, config: MaskedDiffusionConfig, block_length: int) -> None:
    """Refuses more denoising steps than the operator allows a request."""
    from vllm.v1.diffusion.config import limit_of

    for name, value, limit, always in (
        ("steps", given.steps, "steps_limit", block_length),
        ("max_post_steps", given.numbers.get("max_post_steps"), "post_steps_limit", 0),
    ):
        most = max(limit_of(config, limit), always)
        also = f", or as many as the block has tokens, {block_length}" if always else ""
        require(
            value is None or value <= most,
            name,
            value,
            f"must be at most {limit_of(config, limit)}{also} ({limit} of --diffusion-config)",
        )


def _check_model(given: DiffusionParams, config: MaskedDiffusionConfig) -> None:
    """Refuses what has no effect on the served model."""
    require(
        given.cache is None or config.cache is not None,
        "cache",
        given.cache,
        "has no effect on this model, whose cache is exact",
    )
    require(
        not given.end_tokens_last or bool(config.end_token_ids),
        "end_tokens_last",
        given.end_tokens_last,
        f"has no effect on this model, but on {', '.join(END_OF_TURN)}",
    )


def _check_growth(given: DiffusionParams, config: MaskedDiffusionConfig) -> None:
    """Refuses what only models read whose answers grow."""
    require(
        given.expand_budget is None or config.expand_token_id is not None,
        "expand_budget",
        given.expand_budget,
        f"has no effect on this model, but on {', '.join(ELASTIC)}",
    )


def _check_guidance(given: DiffusionParams, config: MaskedDiffusionConfig) -> None:
    """Refuses guidance where a step does not compute the whole canvas."""
    name, scale = "cfg_scale", given.cfg_scale
    whole = config.cache is not None and config.expand_token_id is None
    require(
        scale is None or whole,
        name,
        scale,
        f"is not supported by this model, but by bidirectional ones: {', '.join(BIDIRECTIONAL)}",
    )
    cache = given.cache or config.cache
    require(
        not scale or cache == "none",
        name,
        scale,
        f"is not supported with {PREFIX}cache={cache!r}, which keeps what the prompt said; use 'none'",
    )


def _check_noise(algorithm: str, policy: UnmaskingPolicy, config: MaskedDiffusionConfig) -> None:
    """Refuses a policy that is for another kind of model."""
    noise = "uniform" if config.mask_token_id is None else "mask"
    kind = "random tokens" if config.mask_token_id is None else "masks"
    require(
        policy.noise == noise,
        "algorithm",
        algorithm,
        f"is not for this model, whose open positions hold {kind}; its own is {config.algorithm!r}",
    )


def _holes(given: DiffusionParams, config: MaskedDiffusionConfig) -> tuple[int, ...] | None:
    """What a template's holes begin with, where noise is no mask and a request has said so."""
    if config.mask_token_id is not None or given.seed_canvas is None:
        return None
    return tuple(given.seed_canvas)


def _check_read(
    given: DiffusionParams, extra: Mapping[str, Any], algorithm: str, policy: UnmaskingPolicy
) -> None:
    """Refuses what other algorithms read and this one does not, as it was written."""
    asked = {"steps": given.steps, **given.numbers}
    for name in sorted(asked.keys() - policy.parameters):
        aliases = parameters()[name].aliases
        written = next((one for one in aliases if PREFIX + one in extra), name)
        require(
            asked[name] is None,
            written,
            asked[name],
            f"has no effect with diffusion_algorithm={algorithm!r}, which reads "
            f"{', '.join(sorted(policy.parameters)) or 'no parameters'}",
        )


def _check_edits(
    given: DiffusionParams,
    params: SamplingParams | None,
    algorithm: str,
    policy: UnmaskingPolicy,
    config: MaskedDiffusionConfig,
    values: Mapping[str, float],
) -> None:
    """Refuses what does not go with insertions and deletions, or goes with nothing else."""
    if policy.elastic:
        _check_elastic(given, algorithm, config)
    elif not policy.redraws:
        require(
            config.edit_ids is None or config.expand_token_id is not None,
            "algorithm",
            algorithm,
            "would write this model's delete and split tokens as text; only insert_delete reads them",
        )
        return
    else:
        require(
            config.edit_ids is not None and config.expand_token_id is None,
            "algorithm",
            algorithm,
            "needs a model with a delete_token_id and a split_token_id in its config.json",
        )
        most, post_steps = MOST_POST_STEPS, int(values["max_post_steps"])
        require(
            post_steps <= most,
            "max_post_steps",
            post_steps,
            f"must be at most {most} with diffusion_algorithm={algorithm!r}",
        )
    for name in ("max_steps", "exit_threshold", "infill", "infill_ids", "seed_canvas"):
        value = getattr(given, name)
        require(value is None, name, value, f"is not supported with diffusion_algorithm={algorithm!r}")
    late = given.end_tokens_last
    require(not late, "end_tokens_last", late, f"is not supported with diffusion_algorithm={algorithm!r}")
    words = params.bad_words_token_ids if params else None
    for name, value in (
        ("bad_words", params.bad_words if params and any(len(word) > 1 for word in words or ()) else None),
        ("logprobs", params.logprobs if params else None),
        ("logprob_token_ids", params.logprob_token_ids if params else None),
    ):
        if value is not None:
            why = "tokens move after the step that wrote them"
            message = f"{name}={value!r} is not supported with diffusion_algorithm={algorithm!r}: {why}."
            raise ParameterError(message, parameter=name, value=value)


def _check_speculation(
    given: DiffusionParams, params: SamplingParams | None, algorithm: str, policy: UnmaskingPolicy
) -> None:
    """Refuses what does not go with drafts that are verified before they are written."""
    if not policy.speculates:
        return
    for name in ("max_steps", "exit_threshold", "eos_early_stop", "end_tokens_last"):
        value = getattr(given, name)
        require(not value, name, value, f"is not supported with diffusion_algorithm={algorithm!r}")
    if params is None:
        return
    words = [word for word in params.bad_words_token_ids or () if len(word) > 1]
    for name, asked in (
        ("structured_outputs", params.structured_outputs is not None),
        ("bad_words", bool(words)),
        ("logprobs", params.logprobs is not None),
        ("logprob_token_ids", params.logprob_token_ids is not None),
    ):
        if asked:
            value = getattr(params, name)
            why = "a token is drafted in one step and verified in another"
            message = f"{name}={value!r} is not supported with diffusion_algorithm={algorithm!r}: {why}."
            raise ParameterError(message, parameter=name, value=value)


def _check_open_blocks(
    given: DiffusionParams, params: SamplingParams | None, algorithm: str, policy: UnmaskingPolicy
) -> None:
    """Refuses what ends a block, or reads it from left to right, where several are open."""
    if not policy.opens_blocks:
        return
    for name in ("max_steps", "exit_threshold", "eos_early_stop", "end_tokens_last"):
        value = getattr(given, name)
        require(not value, name, value, f"is not supported with diffusion_algorithm={algorithm!r}")
    if params is not None and params.structured_outputs is not None:
        raise ParameterError(
            f"structured_outputs (response_format, tool_choice) are not supported with "
            f"diffusion_algorithm={algorithm!r}: a grammar reads one open block, and there are several.",
            parameter="structured_outputs",
            value=None,
        )


def _check_elastic(given: DiffusionParams, algorithm: str, config: MaskedDiffusionConfig) -> None:
    """Refuses what does not go with an answer whose length the policy decides."""
    _check_bidirectional(algorithm, config)
    cache = given.cache or config.cache
    require(cache == "none", "cache", cache, f"is not supported with diffusion_algorithm={algorithm!r}")
    scale = given.cfg_scale
    require(not scale, "cfg_scale", scale, f"is not supported with diffusion_algorithm={algorithm!r}")


def _check_bidirectional(algorithm: str, config: MaskedDiffusionConfig) -> None:
    """Refuses a policy on a model whose steps do not see the whole answer, or that changes its length."""
    require(
        config.cache is not None and config.expand_token_id is None,
        "algorithm",
        algorithm,
        f"is not for this model, but for bidirectional ones: {', '.join(BIDIRECTIONAL)}",
    )


def _check_early_stop(given: DiffusionParams, values: Mapping[str, float]) -> None:
    """Refuses a policy's early stop where an end token ends nothing, and an end token without the stop."""
    if not values[EARLY_STOP]:
        end = given.numbers.get(END_TOKEN_ID)
        require(end is None, END_TOKEN_ID, end, f"has no effect without {PREFIX}{EARLY_STOP}")
        return
    for name in ("infill", "infill_ids", "seed_canvas"):
        require(
            getattr(given, name) is None,
            EARLY_STOP,
            True,
            f"is not supported with a template ({PREFIX}{name}), in which an end token ends nothing",
        )


def _values(
    given: DiffusionParams, algorithm: str, policy: UnmaskingPolicy, config: MaskedDiffusionConfig
) -> dict[str, float]:
    """The policy's numbers: the request's, else the engine's, else its own."""
    values: dict[str, float] = {}
    for name, number in policy.numbers.items():
        value = _first(given.numbers.get(name), config.numbers.get(name), number.default)
        if value is None and name == END_TOKEN_ID and values.get(EARLY_STOP) == 0:
            value = -1  # Nothing reads it.
        require(value is not None, name, None, f"must be given with diffusion_algorithm={algorithm!r}")
        values[name] = float(value)
    return values


def _stop_ids(
    given: DiffusionParams,
    params: SamplingParams | None,
    policy: UnmaskingPolicy,
    config: MaskedDiffusionConfig,
    early: bool,
) -> tuple[int, ...]:
    """The tokens that end a block early; where ``early`` is true they do unless a request says no."""
    if params is None:
        return ()
    templated = (given.infill, given.infill_ids, given.seed_canvas) != (None, None, None)
    if given.eos_early_stop is None and early and not templated:
        own = () if params.ignore_eos or params.eos_token_id is None else (params.eos_token_id,)
        return (*(params.stop_token_ids or ()), *own)
    if not given.eos_early_stop:
        return ()
    name, value = "eos_early_stop", given.eos_early_stop
    require(
        not (policy.rewrites and policy.rewrites_text) and policy.noise == "mask",
        name,
        value,
        "has no effect with an algorithm that may still rewrite the end token",
    )
    ids = tuple(params.stop_token_ids or ())
    ignored = params.ignore_eos or config.stop_at_eos is False
    why = "with ignore_eos" if params.ignore_eos else "on a model whose end token ends nothing,"
    if given.infill_ids is not None or given.seed_canvas is not None:
        why = "with a template, in which an end token ends nothing,"
    require(bool(ids) or not ignored, name, value, f"has no effect {why} and no stop_token_ids")
    return ids if ignored or params.eos_token_id is None else (*ids, params.eos_token_id)


def _first(*values: Any) -> Any:
    """The first value that is set."""
    return next((value for value in values if value is not None), None)
