# SPDX-License-Identifier: Apache-2.0
"""The bundled model solves puzzles it has never seen, with nothing but defaults."""

from __future__ import annotations

from typing import Any

import pytest

from models.tinydlm.problems import check
from tests.engine.fresh_puzzles import COUNT, defaults, puzzles_of
from tests.engine.likelihoods import ranked_right
from vllm.v1.diffusion.demo.puzzles import TASKS

LEAST_RIGHT = {"sudoku": 0.98, "add": 0.97, "sort": 0.97, "reverse": 0.97}


@pytest.mark.parametrize("task", TASKS)
def test_held_out_accuracy(bundled: Any, task: str) -> None:
    puzzles = puzzles_of(task)
    outputs = bundled.generate([p.prompt for p in puzzles], defaults(bundled), use_tqdm=False)
    answers = [output.outputs[0] for output in outputs]
    right = [p.is_right(a.text) for p, a in zip(puzzles, answers, strict=True)]
    wrong = [(p.prompt, a.text) for p, a, ok in zip(puzzles, answers, right, strict=True) if not ok]
    assert sum(right) >= LEAST_RIGHT[task] * COUNT, wrong[:20]
    # The trainer's checker shares no code with the puzzles'.
    assert right == [check(p.prompt, a.text) for p, a in zip(puzzles, answers, strict=True)]
    # A right answer ends with the end token, not for lack of room.
    assert all(a.finish_reason == "stop" for a, ok in zip(answers, right, strict=True) if ok)


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("sudoku 1003/0300/3210/4132=", "1423/2341/3214/4132"),
        ("add 482+917=", "1399"),
        ("sort 53914=", "13459"),
        ("reverse stone=", "enots"),
    ],
)
def test_the_documented_examples(bundled: Any, prompt: str, answer: str) -> None:
    (output,) = bundled.generate([prompt], defaults(bundled), use_tqdm=False)
    assert output.outputs[0].text == answer
    assert output.outputs[0].finish_reason == "stop"


def test_more_than_one_token_a_forward(bundled: Any) -> None:
    """What a diffusion model is for: the default decoding unmasks many tokens at once."""
    puzzles = puzzles_of("sudoku")[:100]
    outputs = bundled.generate([p.prompt for p in puzzles], defaults(bundled), use_tqdm=False)
    tokens = sum(len(o.outputs[0].token_ids) for o in outputs)
    forwards = sum(o.outputs[0].diffusion.steps for o in outputs)
    assert tokens / forwards >= 2


LEAST_RANKED_RIGHT = {
    "left_to_right": {"sudoku": 0.9, "add": 0.9, "sort": 0.9, "reverse": 0.9},
    "one_step": {"sudoku": 0.9, "add": 0.9, "sort": 0.9, "reverse": 0.9},
}


@pytest.mark.parametrize("estimator", LEAST_RANKED_RIGHT)
@pytest.mark.parametrize("task", TASKS)
def test_the_likeliest_of_four_answers_is_right(bundled: Any, task: str, estimator: str) -> None:
    """As an evaluator ranks choices; a small sample of docs/serving.md's table."""
    share = ranked_right(bundled, puzzles_of(task)[:25], estimator)
    assert share >= LEAST_RANKED_RIGHT[estimator][task]
