# SPDX-License-Identifier: Apache-2.0
"""Per-request parameters of diffusion decoding, and their checks."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from vllm.exceptions import VLLMValidationError
from vllm.v1.diffusion.policies import get_policy

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams
    from vllm.v1.diffusion.config import MaskedDiffusionConfig

_PREFIX = "diffusion_"


class ParameterError(VLLMValidationError, ValueError):
    """A request's parameter is wrong: HTTP 400, ``ValueError`` in Python."""


@dataclass(frozen=True, kw_only=True)
class DiffusionParams:
    """How one request is denoised; what is None takes the engine's default.

    ``SamplingParams(extra_args=DiffusionParams(steps=2).to_extra_args())``; over
    HTTP the same keys are members of ``vllm_xargs``.

    Attributes:
        algorithm: Name of the unmasking policy.
        steps: Denoising steps a block, at least 1. Read by
            ``low_confidence_static``, ``low_confidence_dynamic`` and
            ``sequential``.
        block_length: Tokens a block: at least 1, a divisor of the served
            block length.
        threshold: Confidence above which a position is settled, 0 to 1. Read by
            ``low_confidence_dynamic`` and ``threshold``.
        factor: How many positions may be settled at a probability below 1, above 0.
            Read by ``factor``.
        entropy_bound: Bound on the summed entropy of the positions settled in a
            step, in nats, above 0. Read by ``entropy_bounded``.
        trace: Whether ``CompletionOutput.unmask_trace`` tells for every token in
            which denoising step of the request it was settled, and its
            probability in that step.
    """

    algorithm: str | None = None
    steps: int | None = None
    block_length: int | None = None
    threshold: float | None = None
    factor: float | None = None
    entropy_bound: float | None = None
    trace: bool | None = None

    def to_extra_args(self) -> dict[str, Any]:
        """The parameters that are set, as ``SamplingParams.extra_args``."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {_PREFIX + k: v for k, v in values.items() if v is not None}

    @classmethod
    def from_extra_args(cls, extra_args: dict[str, Any] | None) -> DiffusionParams:
        """Reads ``SamplingParams.extra_args``.

        Raises:
            ParameterError: A key is unknown.
        """
        known = {_PREFIX + f.name: f.name for f in fields(cls)}
        values = {}
        for key, value in (extra_args or {}).items():
            if key in known:
                values[known[key]] = value
            else:
                raise ParameterError(
                    f"{key} has no effect on this model. Known: {', '.join(known)}.",
                    parameter=key,
                    value=value,
                )
        return cls(**values)


@dataclass(frozen=True)
class Decoding:
    """How a request is denoised, with every default filled in."""

    algorithm: str
    steps: int
    block_length: int
    threshold: float
    trace: bool


def resolve_decoding(params: SamplingParams | None, config: MaskedDiffusionConfig) -> Decoding:
    """Combines a request's parameters with the engine's defaults.

    Args:
        params: The request's parameters; None stands for none given.
        config: The engine's resolved configuration.

    Raises:
        ParameterError: A parameter is of the wrong type, out of range, or
            has no effect with the algorithm.
    """
    given = DiffusionParams.from_extra_args(params.extra_args if params else None)
    served = config.block_length
    assert served is not None and config.algorithm is not None
    block_length = served
    if given.block_length is not None:
        _check_int("block_length", given.block_length)
        _require(
            served % given.block_length == 0,
            "block_length",
            given.block_length,
            f"must divide the served block length, {served}",
        )
        block_length = given.block_length
    algorithm = given.algorithm or config.algorithm
    _require(isinstance(algorithm, str), "algorithm", algorithm, "must be a string")
    try:
        policy = get_policy(algorithm)
    except ValueError as error:
        raise ParameterError(str(error), parameter=_PREFIX + "algorithm", value=algorithm) from error
    for name in ("steps", "threshold", "factor", "entropy_bound"):
        value = getattr(given, name)
        _require(
            value is None or name in policy.parameters,
            name,
            value,
            f"has no effect with diffusion_algorithm={algorithm!r}, which reads "
            f"{', '.join(sorted(policy.parameters)) or 'no parameters'}",
        )
    if given.steps is not None:
        _check_int("steps", given.steps)
    if given.threshold is not None:
        _check_number("threshold", given.threshold)
        _require(0 <= given.threshold <= 1, "threshold", given.threshold, "must be 0 to 1")
    for name in ("factor", "entropy_bound"):
        value = getattr(given, name)
        if value is not None:
            _check_number(name, value)
            _require(value > 0, name, value, "must be above 0")
    # The server's vllm_xargs turn JSON's booleans into 0 and 1.
    _require(given.trace in (None, 0, 1), "trace", given.trace, "must be true or false")
    name = policy.threshold_parameter
    threshold = getattr(given, name, None)
    if threshold is None:
        threshold = getattr(config, name, None)
    return Decoding(
        algorithm=algorithm,
        steps=given.steps or config.steps or block_length,
        block_length=block_length,
        threshold=float(threshold or 0.0),
        trace=bool(given.trace),
    )


# What a sampling parameter may be, for it is then not asked for.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "allowed_token_ids": (None,),
    "bad_words": (None, []),
    "flat_logprobs": (False,),
    "frequency_penalty": (0.0,),
    "logit_bias": (None, {}),
    "logprob_token_ids": (None, []),
    "logprobs": (None,),
    "min_p": (0.0,),
    "min_tokens": (0,),
    "presence_penalty": (0.0,),
    "prompt_logprob_start": (None,),
    "prompt_logprob_token_ids": (None,),
    "prompt_logprobs": (None,),
    "repetition_detection": (None,),
    "repetition_penalty": (1.0,),
    "routed_experts_prompt_start": (0,),
    "structured_outputs": (None,),
    "thinking_token_budget": (None, -1),
    "trace_decode_token_ids": (None, []),
    "watermarking": (None, False),
}
_ALSO_CALLED = {
    "structured_outputs": "response_format, tool_choice",
    "logprobs": "top_logprobs, use_beam_search",
}
"""What clients of the server may have written for it."""


def check_sampling_params(params: SamplingParams) -> None:
    """Refuses what block diffusion would otherwise ignore.

    Raises:
        ParameterError: Names the first such parameter.
    """
    for name, neutral in _UNSUPPORTED.items():
        value = getattr(params, name, neutral[0])
        if value not in neutral:
            alias = _ALSO_CALLED.get(name)
            raise ParameterError(
                f"{name}={value!r}{f' ({alias})' if alias else ''} is not supported with diffusion models.",
                parameter=name,
                value=value,
            )


def _check_int(name: str, value: Any) -> None:
    _require(
        isinstance(value, int) and not isinstance(value, bool) and value >= 1,
        name,
        value,
        "must be an integer of at least 1",
    )


def _check_number(name: str, value: Any) -> None:
    _require(
        isinstance(value, int | float) and not isinstance(value, bool) and value == value,
        name,
        value,
        "must be a number",
    )


def _require(valid: bool, name: str, value: Any, message: str) -> None:
    if not valid:
        raise ParameterError(
            f"{_PREFIX}{name}={value!r} {message}.",
            parameter=_PREFIX + name,
            value=value,
        )
