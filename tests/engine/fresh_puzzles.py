# SPDX-License-Identifier: Apache-2.0
"""Puzzles that the bundled models were not trained on."""

from __future__ import annotations

import random
from typing import Any

from models.tinydlm.problems import is_reserved
from vllm.v1.diffusion.demo.puzzles import Puzzle, make_puzzle

COUNT = 500
SEED = 20261  # Of no training and no earlier evaluation.


def puzzles_of(task: str) -> list[Puzzle]:
    """Fresh puzzles; of Sudokus those that training keeps out by a rule on their cells."""
    rng = random.Random(f"{task} {SEED}")
    puzzles: list[Puzzle] = []
    while len(puzzles) < COUNT:
        puzzle = make_puzzle(task, rng)
        if task != "sudoku" or is_reserved(tuple(int(c) for c in puzzle.prompt if c.isdigit())):
            puzzles.append(puzzle)
    return puzzles


def defaults(llm: Any) -> Any:
    """The checkpoint's own sampling parameters, and room for the longest answer."""
    params = llm.get_default_sampling_params()
    params.max_tokens = 32
    return params
