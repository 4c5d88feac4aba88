# SPDX-License-Identifier: Apache-2.0
"""What a request asks for that wants its prompt's log probabilities (``prompt_logprobs``).

A diffusion model predicts masked positions. So the tokens to be scored, the *targets*, are denoised like an
answer that is given: the prompt is what comes before them, and where a step unmasks a position, the token is
the target. What is reported is the model's log probability of that token in that step. The estimator
chooses the order. ``left_to_right`` unmasks one position per step. Each token is then predicted from all
tokens before it, and the sum over a text is the logarithm of a probability: a chain rule. ``one_step``
unmasks a block per step.

``monte_carlo`` is the estimator that LLaDA's authors published (arXiv:2502.09992, equation 6). A sample draws
a number l from 1 to L, and masks l of the L targets. The model sees the others, wherever they stand. A masked
token's log probability is divided by l / L. The mean over samples estimates, without bias, a lower bound of
the log likelihood. A sample is a pass over the targets, block after block. A block's masked targets are
written as mask tokens, so that the later blocks of the pass see the same text.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vllm.v1.diffusion.config.limits import CAUSAL, MONTE_CARLO, SAMPLES, limit_of
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

_ALGORITHMS = {
    LEFT_TO_RIGHT: "sequential",
    "one_step": "low_confidence_static",
    MONTE_CARLO: "low_confidence_static",
}
_LIKELIHOOD, _SCORE_FROM = PREFIX + "likelihood", PREFIX + "score_from"
_SAMPLES, _SEED = PREFIX + "score_samples", PREFIX + "score_seed"


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
    estimator, ids = _estimator(params, config), tuple(prompt[begin:])
    if estimator != MONTE_CARLO:
        return Targets(ids, estimator, decoding.block_length)
    # Wherever blocks lie, what is seen is the same: the longest take the fewest passes.
    assert config.block_length is not None
    return sampled(Targets(ids, estimator, config.block_length), sampling_of(params, config).seed, 0)


class Sampling(NamedTuple):
    """How ``monte_carlo`` samples: how often, and from which seed."""

    samples: int
    seed: int


def sampling_of(params: SamplingParams, config: MaskedDiffusionConfig) -> Sampling:
    """How often and from which seed a request's targets are sampled, if its estimator samples.

    Args:
        params: The request's parameters.
        config: The engine's resolved configuration.
    """
    extra = params.extra_args or {}
    samples, seed = extra.get(_SAMPLES), extra.get(_SEED)
    return Sampling(
        (config.score_samples or SAMPLES) if samples is None else samples,
        (config.score_seed or 0) if seed is None else seed,
    )


def sampled(targets: Targets, seed: int, sample: int) -> Targets:
    """Targets of which one sample masks some.

    The generator is NumPy's PCG64, seeded with ``[seed, sample]``. Its first double, times L, rounded down
    and plus 1, is the number of masks. The next L are one for each target: the smallest are masked.

    Args:
        targets: The targets.
        seed: The seed.
        sample: The sample, from 0.
    """
    draws = np.random.Generator(np.random.PCG64([seed, sample]))
    length = len(targets.ids)
    count = 1 + int(draws.random() * length)
    order = np.argsort(draws.random(length), kind="stable")
    return replace(targets, hidden=tuple(sorted(order[:count].tolist())))


def _estimator(params: SamplingParams, config: MaskedDiffusionConfig) -> str:
    return (params.extra_args or {}).get(_LIKELIHOOD) or config.likelihood or LEFT_TO_RIGHT


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
        # A sample is seen as a whole.
        canvas=config.max_canvas_length if targets.hidden is None else None,
        targets=targets.ids,
        hidden=targets.hidden,
    )


def check_likelihood(
    params: SamplingParams, mode: Mode, config: MaskedDiffusionConfig, reported: str = "raw_logprobs"
) -> None:
    """Refuses what has no effect without scores, and scores that a model cannot give.

    Args:
        params: A request's parameters.
        mode: The engine's mode.
        config: The engine's resolved configuration.
        reported: What it reports, its ``--logprobs-mode``.

    Raises:
        ParameterError: Names the parameter.
    """
    given = DiffusionParams.from_extra_args(params.extra_args)
    if params.prompt_logprobs is None:
        for name in ("likelihood", "score_from", "score_samples", "score_seed"):
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
    if _estimator(params, config) == MONTE_CARLO:
        require(
            not reported.endswith("logits"),
            "likelihood",
            MONTE_CARLO,
            f"is not supported with --logprobs-mode {reported}: samples are means of log probabilities",
        )
        _check_samples(given, params.prompt_logprobs, config)
        return
    for name in ("score_samples", "score_seed"):
        value = getattr(given, name)
        require(value is None, name, value, f"has no effect without {_LIKELIHOOD}={MONTE_CARLO!r}")


def _check_samples(given: DiffusionParams, listed: int, config: MaskedDiffusionConfig) -> None:
    """Refuses samples where they say nothing, are too many, or would have to list other tokens."""
    require(config.cache is not None, "likelihood", MONTE_CARLO, f"is not supported by this model: {CAUSAL}")
    if not 0 <= listed <= 1:
        raise ParameterError(
            f"prompt_logprobs={listed!r} must be 0 or 1 with {_LIKELIHOOD}={MONTE_CARLO!r}: a token's mean "
            "over samples has no list of likelier ones.",
            parameter="prompt_logprobs",
            value=listed,
        )
    most = limit_of(config, "score_samples_limit")
    require(
        given.score_samples is None or given.score_samples <= most,
        "score_samples",
        given.score_samples,
        f"must be at most {most} (score_samples_limit of --diffusion-config)",
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
