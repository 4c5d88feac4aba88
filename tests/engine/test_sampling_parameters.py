# SPDX-License-Identifier: Apache-2.0
"""Sampling parameters through the engine, against the reference's logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from tests.engine.cases import random_prompt, reference
from tests.engine.conftest import GOLDEN, SETTINGS
from tests.reference.bidirectional import LladaReference
from vllm import LLM, DiffusionParams, SamplingParams  # type: ignore[attr-defined]  # lazy

BLOCK = 8
PROMPT = list(random_prompt(35, 70))
ALGORITHMS: list[dict[str, Any]] = [
    {"algorithm": "low_confidence_static", "steps": 3},
    {"algorithm": "low_confidence_dynamic", "threshold": 0.4},
    {"algorithm": "sequential", "steps": 4},
    {"algorithm": "threshold", "threshold": 0.3},
    {"algorithm": "entropy_bounded", "entropy_bound": 2.0},
]
OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "repetition_penalty": {"repetition_penalty": 1.6},
    "presence_penalty": {"presence_penalty": 1.5},
    "frequency_penalty": {"frequency_penalty": 1.8},
    "logit_bias": {"logit_bias": {7: 9.0, 300: 8.0}},
    "allowed_token_ids": {"allowed_token_ids": [3, 5, 8, 90, 300, 401]},
    "min_tokens": {"min_tokens": 9, "stop_token_ids": list(range(0, 480, 4))},
    "min_p": {"min_p": 0.4, "temperature": 1.0, "seed": 4},
    "logprobs": {"logprobs": 3},
}


def params(algorithm: dict[str, Any], bad_words: Any = None, **options: Any) -> SamplingParams:
    """Greedy, with a trace, where nothing else is given."""
    extra = DiffusionParams(block_length=BLOCK, trace=True, **algorithm).to_extra_args()
    given = {"temperature": 0.0, "max_tokens": 20, "ignore_eos": True, "detokenize": False, **options}
    made = SamplingParams(extra_args=extra, **given)
    made._bad_words_token_ids = bad_words
    return made


def run(llm: Any, batch: list[SamplingParams], prompt: list[int] = PROMPT) -> list[Any]:
    """The completions of one batch."""
    outputs = llm.generate([{"prompt_token_ids": prompt}] * len(batch), batch, use_tqdm=False)
    return [o.outputs[0] for o in outputs]


def pairs() -> list[SamplingParams]:
    """Each option alone and each pair, the algorithms taking turns."""
    names = list(OPTIONS)
    made: list[SamplingParams] = []
    for i, first in enumerate(names):
        for second in names[i:]:
            made.append(
                params(ALGORITHMS[len(made) % len(ALGORITHMS)], **{**OPTIONS[first], **OPTIONS[second]})
            )
    return made


@dataclass
class Subject:
    """An engine, its reference, and what it made of all pairs in batches of 16."""

    llm: Any
    mask: int
    bidirectional: bool
    logits: Callable[[list[int]], torch.Tensor]
    reported: list[tuple[SamplingParams, Any]]

    def seen_by(self, completion: Any, i: int) -> list[int]:
        """Prompt, output and masks as they were when output token i unmasked."""
        steps = [s for s, _ in completion.diffusion.trace]
        known = [t if s < steps[i] else self.mask for t, s in zip(completion.token_ids, steps, strict=True)]
        if self.bidirectional:
            return [*PROMPT, *known]
        end = (len(PROMPT) + i) // BLOCK * BLOCK + BLOCK
        return [*PROMPT, *known, *[self.mask] * BLOCK][:end]

    def without_mask(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits of what may be generated."""
        return logits.masked_fill(torch.arange(len(logits)) == self.mask, -math.inf)


@pytest.fixture(scope="module", params=["block_diffusion", "full_diffusion"])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    batch = pairs()
    if request.param == "block_diffusion":
        llm, sdar = request.getfixturevalue("engine"), reference()
        reported = list(zip(batch, run(llm, batch), strict=True))
        yield Subject(llm, sdar.mask_id, False, lambda ids: sdar.logits(ids, BLOCK), reported)
        return
    llm = LLM(**SETTINGS | {"model": str(GOLDEN / "llada"), "async_scheduling": True})
    llada = LladaReference(GOLDEN / "llada")
    reported = list(zip(batch, run(llm, batch), strict=True))
    yield Subject(llm, llada.mask_id, True, lambda ids: llada.forward(ids, range(len(ids)), []), reported)
    llm.llm_engine.engine_core.shutdown()


def expected_logits(subject: Subject, sampling: SamplingParams, ids: list[int], position: int) -> Any:
    """Raw and processed logits of a position, float64, without filters."""
    raw = subject.logits(ids)[position].double()
    x = raw.clone()
    if sampling.allowed_token_ids:
        banned = torch.ones(len(x), dtype=torch.bool)
        banned[sampling.allowed_token_ids] = False
        x[banned] = -math.inf
    for token, bias in (sampling.logit_bias or {}).items():
        x[token] += bias
    if position < len(PROMPT) + sampling.min_tokens:
        x[list(sampling.all_stop_token_ids)] = -math.inf
    output = [t for t in ids[len(PROMPT) :] if t != subject.mask]
    for token in {*PROMPT, *output}:
        x[token] *= 1 / sampling.repetition_penalty if x[token] > 0 else sampling.repetition_penalty
    for token in output:
        x[token] -= sampling.frequency_penalty
    for token in set(output):
        x[token] -= sampling.presence_penalty
    return raw, x


def test_every_pair_as_the_reference(subject: Subject) -> None:
    """Every token is the best of its step, at the confidence of its step."""
    for sampling, completion in subject.reported:
        stopped = completion.token_ids[-1] in (sampling.stop_token_ids or ())
        if stopped:
            # What unmasked behind the stop token is not reported, so no step can be replayed.
            assert len(completion.token_ids) > sampling.min_tokens
            continue
        assert len(completion.token_ids) == 20
        for i in range(0, 13, 2):
            raw, x = expected_logits(subject, sampling, subject.seen_by(completion, i), len(PROMPT) + i)
            token, confidence = completion.token_ids[i], completion.diffusion.trace[i][1]
            allowed = subject.without_mask(x)
            if sampling.min_p:
                x = allowed.masked_fill(allowed < allowed.max() + math.log(sampling.min_p), -math.inf)
            else:
                assert float(allowed.max() - allowed[token]) < 1e-3, (sampling, i)
            probabilities = x.double().softmax(-1)
            assert confidence == pytest.approx(float(probabilities[token]), abs=2e-3), (sampling, i)
            entropy = float(-torch.special.xlogy(probabilities, probabilities).sum())
            assert completion.diffusion.entropies[i] == pytest.approx(entropy, abs=1e-2), (sampling, i)
            if sampling.logprobs is not None:
                reported, listed = completion.logprobs[i], subject.without_mask(raw)
                assert set(listed.topk(3).indices.tolist()) <= set(reported)
                assert reported[token].rank == int((listed >= listed[token]).sum())
                scores = raw.log_softmax(-1)
                for one, entry in reported.items():
                    assert entry.logprob == pytest.approx(float(scores[one]), abs=2e-3)


def test_each_alone_is_as_in_the_batch(subject: Subject) -> None:
    for sampling, completion in subject.reported[:: len(subject.reported) // 6]:
        (alone,) = run(subject.llm, [sampling])
        assert alone.token_ids == completion.token_ids
        assert alone.diffusion.trace == completion.diffusion.trace
        assert alone.diffusion.entropies == completion.diffusion.entropies
        assert alone.logprobs == completion.logprobs


def test_bad_words_never_stand_in_the_output(subject: Subject) -> None:
    """The words of what the model would have said, and the words it says then, and so on."""
    words: list[list[int]] = []
    for round_, algorithm in enumerate((*ALGORITHMS, {"algorithm": "low_confidence_static", "steps": 1})):
        made = [
            params(algorithm, bad_words=words or None, max_tokens=29, temperature=t, seed=round_)
            for t in (0.0, 0.9)
        ]
        texts = [list(completion.token_ids) for completion in run(subject.llm, made)]
        for text in texts:
            assert len(text) == 29
            for word in words:
                assert all(text[i : i + len(word)] != word for i in range(len(text)))
        at = 3 * round_ + 2
        for text in texts:
            words += [text[at : at + 2], text[at + 2 : at + 5], text[at + 6 : at + 7]]


def test_n_completions_have_their_own_log_probabilities(subject: Subject) -> None:
    sampling = params(ALGORITHMS[0], n=3, temperature=1.0, seed=2, logprobs=1)
    outputs = subject.llm.generate([{"prompt_token_ids": PROMPT}], sampling, use_tqdm=False)[0].outputs
    assert len({tuple(o.token_ids) for o in outputs}) == 3
    for output in outputs:
        scores = [
            entry[token].logprob for token, entry in zip(output.token_ids, output.logprobs, strict=True)
        ]
        # The trace holds the probability in the same distribution, at temperature 1.
        assert [math.exp(x) for x in scores] == pytest.approx(
            [p for _, p in output.diffusion.trace], abs=1e-4
        )
        assert output.cumulative_logprob == pytest.approx(sum(scores))
