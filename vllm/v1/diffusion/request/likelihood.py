# SPDX-License-Identifier: Apache-2.0
"""What a request asks for that wants its prompt's log probabilities (``prompt_logprobs``).

A diffusion model predicts masked positions. So the tokens to be scored, the *targets*, are denoised like an
answer that is given: the prompt is what comes before them, and where a step unmasks a position, the token is
the target. What is reported is the model's log probability of that token in that step. The estimator
chooses the order. ``left_to_right`` unmasks one position per step. Each token is then predicted from all
tokens before it, and the sum over a text is the logarithm of a probability: a chain rule. ``one_step``
unmasks a block per step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.v1.diffusion.message.scores import Targets
from vllm.v1.diffusion.modes.base import Mode
from vllm.v1.diffusion.policies.parameter import PREFIX
from vllm.v1.diffusion.request.decoding import Decoding
from vllm.v1.diffusion.request.fields import ParameterError, require
from vllm.v1.diffusion.request.params import DiffusionParams

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams
    from vllm.v1.diffusion.config import MaskedDiffusionConfig

LEFT_TO_RIGHT = "left_to_right"
"""The estimator where nothing else was said."""

_ALGORITHMS = {LEFT_TO_RIGHT: "sequential", "one_step": "low_confidence_static"}
_LIKELIHOOD, _SCORE_FROM = PREFIX + "likelihood", PREFIX + "score_from"


def scored_from(params: SamplingParams) -> int | None:
    """Index of the first token of a prompt that is to be scored; None where none is.

    Args:
        params: The request's parameters. The first token of a prompt is never scored.
    """
    if params.prompt_logprobs is None:
        return None
    return max(1, int((params.extra_args or {}).get(_SCORE_FROM) or 0))


def targets_of(
    prompt: list[int], params: SamplingParams, decoding: Decoding, config: MaskedDiffusionConfig
) -> Targets | None:
    """The tokens of a prompt that are to be scored; None for none.

    Args:
        prompt: The prompt's tokens.
        params: The request's parameters.
        decoding: How the request is denoised.
        config: The engine's resolved configuration.
    """
    begin = scored_from(params)
    if begin is None or begin >= len(prompt):
        return None
    estimator = (params.extra_args or {}).get(_LIKELIHOOD) or config.likelihood or LEFT_TO_RIGHT
    return Targets(tuple(prompt[begin:]), estimator, decoding.block_length)


def scoring(targets: Targets, config: MaskedDiffusionConfig) -> Decoding:
    """How targets are denoised.

    Args:
        targets: The targets.
        config: The engine's resolved configuration.
    """
    one_by_one = targets.estimator == LEFT_TO_RIGHT
    bidirectional = config.cache is not None
    # All positions behind a canvas's open block are masks: blocks of one token give the same, of one row.
    block_length = 1 if one_by_one and bidirectional else targets.block_length
    return Decoding(
        algorithm=_ALGORITHMS[targets.estimator],
        steps=block_length if one_by_one else 1,
        stepwise=one_by_one,
        block_length=block_length,
        threshold=0.0,
        trace=False,
        cache="none" if bidirectional else None,
        canvas=config.max_canvas_length,
        targets=targets.ids,
    )


def check_likelihood(params: SamplingParams, mode: Mode, config: MaskedDiffusionConfig) -> None:
    """Refuses what has no effect without scores, and scores that a model cannot give.

    Args:
        params: A request's parameters.
        mode: The engine's mode.
        config: The engine's resolved configuration.

    Raises:
        ParameterError: Names the parameter.
    """
    given = DiffusionParams.from_extra_args(params.extra_args)
    if params.prompt_logprobs is None:
        for name in ("likelihood", "score_from"):
            value = getattr(given, name)
            require(
                value is None, name, value, "has no effect without prompt_logprobs (or echo with logprobs)"
            )
        return
    reason = mode.unscored
    if config.edit_ids is not None:
        reason = "this model deletes and inserts tokens: a text's likelihood is no product over its tokens"
    if reason is not None:
        raise ParameterError(
            f"prompt_logprobs={params.prompt_logprobs!r} is not supported: {reason}.",
            parameter="prompt_logprobs",
            value=params.prompt_logprobs,
        )


def check_score_from(params: SamplingParams, prompt_len: int) -> None:
    """Refuses a first token to be scored that the prompt does not have.

    Args:
        params: A request's parameters.
        prompt_len: Tokens of its prompt.

    Raises:
        ParameterError: Names ``diffusion_score_from``.
    """
    begin = (params.extra_args or {}).get(_SCORE_FROM)
    if params.prompt_logprobs is None or begin is None:
        return
    require(begin < prompt_len, "score_from", begin, f"must be below the prompt's {prompt_len} tokens")
