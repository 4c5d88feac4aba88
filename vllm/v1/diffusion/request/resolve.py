# SPDX-License-Identifier: Apache-2.0
"""Combines a request's parameters with the engine's defaults, and refuses what has no effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vllm.v1.diffusion.families import END_OF_TURN
from vllm.v1.diffusion.policies import UnmaskingPolicy, get_policy
from vllm.v1.diffusion.policies.registry import built_in_parameters
from vllm.v1.diffusion.request.decoding import Decoding
from vllm.v1.diffusion.request.fields import PREFIX, Number, naming, parameters, require
from vllm.v1.diffusion.request.params import DiffusionParams
from vllm.v1.diffusion.request.template import template_of

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams
    from vllm.v1.diffusion.config import MaskedDiffusionConfig

_NUMBER = Number(low=-1e30, high=1e30)
"""What a policy's own numbers may be."""


def resolve_decoding(params: SamplingParams | None, config: MaskedDiffusionConfig) -> Decoding:
    """Combines a request's parameters with the engine's defaults.

    Args:
        params: The request's parameters; None stands for none given.
        config: The engine's resolved configuration.

    Raises:
        ParameterError: A parameter is of the wrong type, out of range, or has no effect
            with the algorithm or on the model.
    """
    assert config.algorithm is not None and config.mask_token_id is not None
    extra = dict(params.extra_args or {}) if params else {}
    asked = extra.get(PREFIX + "algorithm")
    algorithm: str = config.algorithm if asked is None else asked
    policy = _policy(algorithm)
    own = {
        name: extra.pop(PREFIX + name)
        for name in policy.defaults
        if PREFIX + name in extra and not hasattr(DiffusionParams, name)
    }
    given = DiffusionParams.from_extra_args(extra)
    for one in parameters(given):
        one.check(getattr(given, one.name))
    block_length = _block_length(given, config)
    _check_model(given, config)
    _check_read(given, algorithm, policy)
    threshold = _threshold(given, algorithm, policy, config)
    steps = given.steps or config.steps or policy.default_steps
    values = _values(own, given, policy, config)
    template = template_of(given, config.mask_token_id)
    constrained = params is not None and params.structured_outputs is not None
    if constrained:
        require(
            not policy.rewrites,
            "algorithm",
            algorithm,
            "is not supported with structured_outputs: it rewrites tokens that the grammar has read",
        )
        name = "seed_canvas" if given.infill is None else "infill"
        require(
            template is None,
            name,
            getattr(given, name),
            "and structured_outputs (response_format, tool_choice) exclude each other",
        )
    return Decoding(
        algorithm=algorithm,
        steps=steps or block_length,
        stepwise=steps is None,
        block_length=block_length,
        threshold=threshold,
        trace=bool(given.trace),
        stats=bool(given.stats),
        values=values,
        cache=given.cache or config.cache,
        max_steps=given.max_steps,
        exit_threshold=given.exit_threshold,
        stop_ids=_stop_ids(given, params, policy, config),
        constrained=constrained,
        vetoes=bool(params and any(len(word) > 1 for word in params.bad_words_token_ids or ())),
        late_ids=tuple(config.end_token_ids or ()) if given.confidence_eos_eot_inf else (),
        template=template,
    )


def _policy(algorithm: Any) -> UnmaskingPolicy:
    require(isinstance(algorithm, str), "algorithm", algorithm, "must be the name of an unmasking policy")
    with naming("algorithm", algorithm):
        return get_policy(algorithm)


def _block_length(given: DiffusionParams, config: MaskedDiffusionConfig) -> int:
    """Tokens a block, which must fit the served block length."""
    served = config.block_length
    assert served is not None
    block_length = given.block_length or served
    # Blocks of bidirectional models begin where the prompt ends, whatever their length.
    aligned = config.cache is None
    require(
        served % block_length == 0 if aligned else block_length <= served,
        "block_length",
        block_length,
        f"must {'divide' if aligned else 'not exceed'} the served block length, {served}",
    )
    return block_length


def _check_model(given: DiffusionParams, config: MaskedDiffusionConfig) -> None:
    """Refuses what has no effect on the served model."""
    require(
        given.cache is None or config.cache is not None,
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


def _check_read(given: DiffusionParams, algorithm: str, policy: UnmaskingPolicy) -> None:
    """Refuses what other algorithms read and this one does not."""
    for name in sorted(built_in_parameters() - policy.parameters):
        value = getattr(given, name)
        require(
            value is None,
            name,
            value,
            f"has no effect with diffusion_algorithm={algorithm!r}, which reads "
            f"{', '.join(sorted(policy.parameters)) or 'no parameters'}",
        )


def _threshold(
    given: DiffusionParams, algorithm: str, policy: UnmaskingPolicy, config: MaskedDiffusionConfig
) -> float:
    """What the policy takes for its threshold; 0 where it has none."""
    name = policy.threshold_parameter
    value = _first(getattr(given, name, None), getattr(config, name, None))
    require(
        value is not None or name not in policy.parameters,
        name,
        None,
        f"must be given with diffusion_algorithm={algorithm!r}",
    )
    return float(value or 0.0)


def _values(
    own: Mapping[str, Any], given: DiffusionParams, policy: UnmaskingPolicy, config: MaskedDiffusionConfig
) -> dict[str, float]:
    """The numbers that the policy has defaults for; ``own`` are those that only it knows."""
    values = {}
    for name, default in policy.defaults.items():
        value = own.get(name, getattr(given, name, None))
        require(value is None or value in _NUMBER, name, value, f"must be {_NUMBER}")
        values[name] = float(_first(value, getattr(config, name, None), default))
    return values


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
    if given.seed_canvas is not None:
        why = "with a template, in which an end token ends nothing,"
    require(bool(ids) or not ignored, name, value, f"has no effect {why} and no stop_token_ids")
    return ids if ignored or params.eos_token_id is None else (*ids, params.eos_token_id)


def _first(*values: Any) -> Any:
    """The first value that is set."""
    return next((value for value in values if value is not None), None)
