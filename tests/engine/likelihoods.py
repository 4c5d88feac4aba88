# SPDX-License-Identifier: Apache-2.0
"""Texts that are scored by an engine and by the plain reference, which each family's tests compare."""

from __future__ import annotations

import random
import string
from itertools import permutations, product
from typing import Any

import pytest
import torch

from tests.engine.cases import random_prompt
from tests.reference.likelihood import sampled_scores, scores
from vllm.v1.diffusion.demo.puzzles import Puzzle

ESTIMATORS = ("left_to_right", "one_step")
TOLERANCE = 2e-4
"""Of a log probability in float32, whatever shares the batch."""


def params_of(**given: Any) -> Any:
    """Parameters of a request that is scored; ``diffusion_`` ones by their names."""
    from vllm import DiffusionParams, SamplingParams  # type: ignore[attr-defined]  # lazy

    own = {name: given.pop(name) for name in list(given) if name in DiffusionParams.model_fields}
    plain = {"temperature": 0, "max_tokens": 1, "prompt_logprobs": 0, "detokenize": False, "ignore_eos": True}
    return SamplingParams(**plain | given, extra_args=DiffusionParams(**own).to_extra_args())


def scored(llm: Any, texts: list[list[int]], params: list[Any]) -> list[Any]:
    """The outputs of one batch."""
    prompts = [{"prompt_token_ids": text} for text in texts]
    outputs: list[Any] = llm.generate(prompts, params, use_tqdm=False)
    return outputs


def values_of(output: Any, text: list[int], begin: int = 1) -> list[float]:
    """The log probabilities of a text's tokens; those before ``begin`` have none."""
    entries = output.prompt_logprobs
    assert output.prompt_token_ids == text
    assert len(entries) == len(text)
    assert entries[:begin] == [None] * begin
    return [entry[token].logprob for entry, token in zip(entries[begin:], text[begin:], strict=True)]


def assert_scores(output: Any, text: list[int], want: list[float], begin: int = 1) -> None:
    """Compares with the plain reference."""
    assert values_of(output, text, begin) == pytest.approx(want, abs=TOLERANCE)


def check_bidirectional(llm: Any, reference: Any, block: int) -> None:
    """Both estimators of a bidirectional model, in one batch with ordinary requests.

    Args:
        llm: The engine.
        reference: A ``BidirectionalReference`` of its checkpoint.
        block: Tokens of its blocks.
    """

    def logits(ids: list[int]) -> torch.Tensor:
        rows: torch.Tensor = reference.forward(ids, range(len(ids)), [])
        return torch.cat((rows[:1], rows[:-1])) if reference.shifted else rows

    cases = [
        (list(random_prompt(length, 81 + i)), begin, estimator)
        for i, (length, begin) in enumerate(((2, 1), (30, 1), (90, 60), (17, 3)))
        for estimator in ESTIMATORS
    ]
    asked = [params_of(likelihood=estimator, score_from=begin, max_tokens=9) for _, begin, estimator in cases]
    texts = [text for text, _, _ in cases]
    plain = [params_of(prompt_logprobs=None, max_tokens=9) for _ in cases]
    outputs = scored(llm, texts + texts, asked + plain)
    for (text, begin, estimator), output, other in zip(cases, outputs, outputs[len(cases) :], strict=False):
        at_once = estimator == "one_step"
        want = scores(
            logits, text, reference.mask_id, begin, block, origin=begin, canvas=len(text), at_once=at_once
        )
        assert_scores(output, text, want, begin)
        assert output.outputs[0].token_ids == other.outputs[0].token_ids
        steps = len(range(begin, len(text), block)) if at_once else len(text) - begin
        assert output.outputs[0].diffusion.likelihood.steps == steps


def check_samples(llm: Any, reference: Any) -> None:
    """``monte_carlo`` of a bidirectional model, beside ordinary requests and other estimators.

    Args:
        llm: The engine.
        reference: A ``BidirectionalReference`` of its checkpoint.
    """

    def logits(ids: list[int]) -> torch.Tensor:
        rows: torch.Tensor = reference.forward(ids, range(len(ids)), [])
        return torch.cat((rows[:1], rows[:-1])) if reference.shifted else rows

    # Text, first target, samples, seed; several blocks, and one token.
    cases = [
        (list(random_prompt(length, 91 + i)), begin, samples, seed)
        for i, (length, begin, samples, seed) in enumerate(
            ((2, 1, 2, 0), (30, 1, 3, 0), (90, 10, 2, 7), (17, 3, 5, 2**40), (17, 3, 5, 1))
        )
    ]
    cases[4] = (cases[3][0], *cases[4][1:])
    own = {"likelihood": "monte_carlo", "max_tokens": 9}
    asked = [
        params_of(score_from=begin, score_samples=samples, score_seed=seed, **own)
        for _, begin, samples, seed in cases
    ]
    texts = [text for text, *_ in cases]
    others = [params_of(likelihood="left_to_right", max_tokens=9) for _ in cases]
    outputs = scored(llm, texts + texts, asked + others)
    for (text, begin, samples, seed), output, other in zip(
        cases, outputs, outputs[len(cases) :], strict=False
    ):
        want = sampled_scores(logits, text, reference.mask_id, begin, samples, seed)
        got = values_of(output, text, begin)
        # A share of few masks multiplies what rounding makes.
        assert got == pytest.approx(want, abs=TOLERANCE * (len(text) - begin))
        assert output.outputs[0].token_ids == other.outputs[0].token_ids
        how = output.outputs[0].diffusion.likelihood
        assert (how.estimator, how.samples, how.seed) == ("monte_carlo", samples, seed)
        assert how.steps >= samples
    assert values_of(outputs[3], texts[3], 3) != values_of(outputs[4], texts[4], 3)
    again = scored(llm, texts[3:4], asked[3:4])[0]
    assert values_of(again, texts[3], 3) == pytest.approx(values_of(outputs[3], texts[3], 3), abs=TOLERANCE)


def choices_of(puzzle: Puzzle, rng: random.Random) -> list[str]:
    """Four answers of a puzzle, of one length: the right one, and others that differ in a place or two."""
    right = solution(puzzle)
    choices = [right]
    while len(choices) < 4:
        wrong = list(right)
        alphabet = string.ascii_lowercase if puzzle.task == "reverse" else "0123456789"
        alphabet = "1234" if puzzle.task == "sudoku" else alphabet
        places = [i for i, character in enumerate(right) if character in alphabet]
        for place in rng.sample(places, min(len(places), rng.choice((1, 2)))):
            wrong[place] = rng.choice(alphabet)
        answer = "".join(wrong)
        if answer not in choices and not puzzle.is_right(answer):
            choices.append(answer)
    return choices


def solution(puzzle: Puzzle) -> str:
    """The right answer of a puzzle, computed."""
    question = puzzle.prompt.removeprefix(f"{puzzle.task} ").removesuffix("=")
    if puzzle.task == "add":
        return str(sum(map(int, question.split("+"))))
    if puzzle.task == "sort":
        return "".join(sorted(question))
    if puzzle.task == "reverse":
        return question[::-1]
    rows = ["".join(row) for row in permutations("1234")]
    grids = ("/".join(four) for four in product(rows, repeat=4))
    return next(grid for grid in grids if puzzle.is_right(grid))


def ranked_right(llm: Any, puzzles: list[Puzzle], estimator: str) -> float:
    """The share of puzzles whose right answer is the likeliest of four."""
    rng, tokenizer = random.Random(7), llm.get_tokenizer()
    texts, begins = [], []
    for puzzle in puzzles:
        context = tokenizer.encode(puzzle.prompt)
        for choice in choices_of(puzzle, rng):
            texts.append(context + tokenizer.encode(choice, add_special_tokens=False))
            begins.append(len(context))
    outputs = scored(llm, texts, [params_of(likelihood=estimator, score_from=begin) for begin in begins])
    sums = [sum(values_of(*one)) for one in zip(outputs, texts, begins, strict=True)]
    return sum(sums[i] == max(sums[i : i + 4]) for i in range(0, len(sums), 4)) / len(puzzles)
