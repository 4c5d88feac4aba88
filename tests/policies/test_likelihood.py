# SPDX-License-Identifier: Apache-2.0
"""Which requests may ask for the log probabilities of their prompts, and what is scored of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vllm import SamplingParams
from vllm.v1.diffusion.config import MaskedDiffusionConfig
from vllm.v1.diffusion.core.scores import Samples
from vllm.v1.diffusion.message.scores import Targets
from vllm.v1.diffusion.modes import MODES
from vllm.v1.diffusion.request.fields import ParameterError
from vllm.v1.diffusion.request.likelihood import (
    Sampling,
    check_likelihood,
    check_score_from,
    sampled,
    sampling_of,
    scoring,
    targets_of,
)
from vllm.v1.diffusion.request.resolve import resolve_decoding
from vllm.v1.outputs import LogprobsLists

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


BIDIRECTIONAL = MaskedDiffusionConfig(
    algorithm="sequential", block_length=4, mask_token_id=9, cache="none", likelihood="monte_carlo"
)


def test_a_sample_is_what_its_seed_says() -> None:
    """A number from 1 to L, all of them as often, and so many of the targets."""
    targets = Targets(tuple(range(5)), "monte_carlo", 4)
    hidden = [sampled(targets, 3, i).hidden for i in range(5000)]
    assert hidden == [sampled(targets, 3, i).hidden for i in range(5000)]
    assert hidden != [sampled(targets, 4, i).hidden for i in range(5000)]
    counts, places = [0] * 6, [0] * 5
    for one in hidden:
        assert one is not None
        assert list(one) == sorted(set(one))
        counts[len(one)] += 1
        for i in one:
            places[i] += 1
    assert counts[0] == 0
    # Five standard deviations of a binomial.
    assert all(abs(count - 1000) < 142 for count in counts[1:])
    assert all(abs(count - 3000) < 175 for count in places)


def test_samples_sum_up_to_the_estimate() -> None:
    samples = Samples(Sampling(2, 0), 3)
    ids = (4, 5, 6)
    values = np.array([[-1.0], [-2.0], [-np.inf]], dtype=np.float32)
    said = [LogprobsLists(np.array(ids)[:, None], values, np.array([1, 7, 3]))]
    samples.take(Targets(ids, "monte_carlo", 4, hidden=(0,)), said)
    samples.take(Targets(ids, "monte_carlo", 4, hidden=(0, 1)), said)
    means = samples.means(ids)
    assert means.logprobs.tolist() == [[(-3 - 1.5) / 2], [-1.5], [0.0]]
    assert means.sampled_token_ranks.tolist() == [1, 7, 0]


def test_how_a_request_is_sampled() -> None:
    assert sampling_of(params(), BIDIRECTIONAL) == (128, 0)
    assert sampling_of(params(score_samples=3, score_seed=5), BIDIRECTIONAL) == (3, 5)
    engine = replace(BIDIRECTIONAL, score_samples=7, score_seed=8)
    assert sampling_of(params(), engine) == (7, 8)
    assert sampling_of(params(score_seed=0), engine) == (7, 0)
    decoding = resolve_decoding(params(), BIDIRECTIONAL)
    targets = targets_of([4, 5, 6, 7, 8, 3], params(score_from=1), decoding, BIDIRECTIONAL)
    assert targets == sampled(Targets((5, 6, 7, 8, 3), "monte_carlo", 4), 0, 0)
    how = scoring(targets, replace(BIDIRECTIONAL, max_canvas_length=4))
    assert (how.steps, how.block_length, how.canvas, how.hidden) == (1, 4, None, targets.hidden)


@pytest.mark.parametrize(
    ("asked", "config", "reason"),
    [
        (
            params(likelihood="monte_carlo"),
            CONFIG,
            r"^diffusion_likelihood='monte_carlo' is not supp",
        ),
        (params(score_samples=3), CONFIG, r"^diffusion_score_samples=3 has no effect without"),
        (
            params(score_seed=0, likelihood="one_step"),
            BIDIRECTIONAL,
            r"^diffusion_score_seed=0 has no effe",
        ),
        (params(score_samples=1025), BIDIRECTIONAL, r"score_samples=1025 must be at most 1024 \(score_samp"),
        (SamplingParams(prompt_logprobs=2), BIDIRECTIONAL, r"^prompt_logprobs=2 must be 0 or 1 with"),
        (SamplingParams(prompt_logprobs=-1), BIDIRECTIONAL, r"^prompt_logprobs=-1 must be 0 or 1 with"),
        (
            SamplingParams(extra_args={"diffusion_score_seed": 1}),
            BIDIRECTIONAL,
            r"^diffusion_score_seed=1 has no effect without prompt_logprobs",
        ),
    ],
)
def test_what_cannot_be_sampled(asked: SamplingParams, config: MaskedDiffusionConfig, reason: str) -> None:
    mode = "causal" if config is CONFIG else "bidirectional"
    with pytest.raises(ParameterError, match=reason):
        check_likelihood(asked, MODES[mode], config)


def test_logits_are_not_averaged() -> None:
    with pytest.raises(ParameterError, match=r"'monte_carlo' is not supported with --logprobs-mode raw_log"):
        check_likelihood(params(), MODES["bidirectional"], BIDIRECTIONAL, "raw_logits")
    check_likelihood(params(), MODES["bidirectional"], BIDIRECTIONAL, "processed_logprobs")
