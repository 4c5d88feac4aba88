# SPDX-License-Identifier: Apache-2.0
"""Which requests may ask for the log probabilities of their prompts, and what is scored of them."""

from __future__ import annotations

from typing import Any

import pytest

from vllm import SamplingParams
from vllm.v1.diffusion.config import MaskedDiffusionConfig
from vllm.v1.diffusion.message.scores import Targets
from vllm.v1.diffusion.modes import MODES
from vllm.v1.diffusion.request.fields import ParameterError
from vllm.v1.diffusion.request.likelihood import check_likelihood, check_score_from, scoring, targets_of
from vllm.v1.diffusion.request.resolve import resolve_decoding

CONFIG = MaskedDiffusionConfig(algorithm="sequential", block_length=4, mask_token_id=9)
SCORED = ("causal", "bidirectional", "exact", "from_prompt", "from_prompt_shifted")


def params(**extra: Any) -> SamplingParams:
    return SamplingParams(prompt_logprobs=1, extra_args={f"diffusion_{name}": v for name, v in extra.items()})


@pytest.mark.parametrize("name", MODES)
def test_a_mode_scores_or_says_why_not(name: str) -> None:
    if name in SCORED:
        check_likelihood(params(likelihood="one_step"), MODES[name], CONFIG)
        return
    with pytest.raises(ParameterError, match=r"^prompt_logprobs=1 is not supported: \w.{20,}\."):
        check_likelihood(params(), MODES[name], CONFIG)
    check_likelihood(SamplingParams(), MODES[name], CONFIG)


def test_what_else_cannot_be_scored() -> None:
    causal = MODES["causal"]
    edits = MaskedDiffusionConfig(block_length=4, mask_token_id=9, delete_token_id=1, split_token_id=2)
    with pytest.raises(ParameterError, match="deletes and inserts"):
        check_likelihood(params(), causal, edits)
    for name, value in (("likelihood", "one_step"), ("score_from", 0)):
        alone = SamplingParams(extra_args={f"diffusion_{name}": value})
        with pytest.raises(ParameterError, match=f"^diffusion_{name}={value!r} has no effect without"):
            check_likelihood(alone, causal, CONFIG)


def test_the_first_token_that_is_scored_is_one_of_the_prompt_s() -> None:
    check_score_from(params(score_from=2), 3)
    check_score_from(params(), 1)
    with pytest.raises(ParameterError, match=r"^diffusion_score_from=3 must be below the prompt's 3 tokens"):
        check_score_from(params(score_from=3), 3)


@pytest.mark.parametrize(("begin", "ids"), [(None, (5, 6, 7)), (0, (5, 6, 7)), (1, (5, 6, 7)), (3, (7,))])
def test_targets(begin: int | None, ids: tuple[int, ...]) -> None:
    asked = params() if begin is None else params(score_from=begin)
    decoding = resolve_decoding(asked, CONFIG)
    assert targets_of([4, 5, 6, 7], asked, decoding, CONFIG) == Targets(ids, "left_to_right", 4)
    assert targets_of([4], asked, decoding, CONFIG) is None
    assert targets_of([4, 5], SamplingParams(), decoding, CONFIG) is None


def test_the_request_s_estimator_goes_before_the_engine_s() -> None:
    engine = MaskedDiffusionConfig(
        algorithm="sequential", block_length=4, mask_token_id=9, likelihood="one_step"
    )
    decoding = resolve_decoding(params(), engine)
    for asked, want in ((params(), "one_step"), (params(likelihood="left_to_right"), "left_to_right")):
        targets = targets_of([4, 5, 6], asked, decoding, engine)
        assert targets is not None
        assert targets.estimator == want


def test_steps() -> None:
    targets = Targets((5, 6, 7), "left_to_right", 4)
    one_by_one, at_once = scoring(targets, CONFIG), scoring(Targets((5, 6), "one_step", 4), CONFIG)
    assert (one_by_one.steps, one_by_one.block_length, one_by_one.cache) == (4, 4, None)
    assert (at_once.steps, at_once.block_length) == (1, 4)
    bidirectional = MaskedDiffusionConfig(block_length=4, mask_token_id=9, cache="dual")
    one_row = scoring(targets, bidirectional)
    assert (one_row.steps, one_row.block_length, one_row.cache) == (1, 1, "none")
    assert scoring(Targets((5, 6), "one_step", 4), bidirectional).block_length == 4
