# SPDX-License-Identifier: Apache-2.0
"""Puzzles that the bundled checkpoints solve, with answers that can be checked."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations


@dataclass(frozen=True)
class Puzzle:
    """A prompt and the test that its answer must pass."""

    task: str
    prompt: str
    is_right: Callable[[str], bool]


def make_puzzle(task: str, rng: random.Random) -> Puzzle:
    """Draws a puzzle.

    Args:
        task: ``sudoku``, ``add``, ``sort`` or ``reverse``.
        rng: Source of randomness; the same state gives the same puzzle.

    Raises:
        ValueError: The task is unknown.
    """
    if task not in TASKS:
        raise ValueError(f"task={task!r} is unknown. Known: {', '.join(TASKS)}.")
    question, is_right = TASKS[task](rng)
    return Puzzle(task, f"{task} {question}=", is_right)


def _sudoku(rng: random.Random) -> tuple[str, Callable[[str], bool]]:
    cells = list(rng.choice(_GRIDS))
    for cell in rng.sample(range(16), rng.randint(4, 12)):
        cells[cell] = "0"
    question = "/".join("".join(cells[i : i + 4]) for i in range(0, 16, 4))

    def is_right(answer: str) -> bool:
        filled = answer.replace("/", "")
        return (
            [len(row) for row in answer.split("/")] == [4] * 4
            and filled in _GRIDS_SET
            and all(c in ("0", f) for c, f in zip(cells, filled, strict=True))
        )

    return question, is_right


def _add(rng: random.Random) -> tuple[str, Callable[[str], bool]]:
    a, b = (rng.randrange(10 ** rng.randint(1, 4)) for _ in range(2))
    return f"{a}+{b}", str(a + b).__eq__


def _sort(rng: random.Random) -> tuple[str, Callable[[str], bool]]:
    digits = rng.choices("0123456789", k=rng.randint(1, 12))
    return "".join(digits), "".join(sorted(digits)).__eq__


def _reverse(rng: random.Random) -> tuple[str, Callable[[str], bool]]:
    word = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(1, 12)))
    return word, word[::-1].__eq__


def _grids() -> list[str]:
    """All 288 filled grids, row by row, without separators."""
    rows = ["".join(p) for p in permutations("1234")]
    grids: list[tuple[str, ...]] = [()]
    for _ in range(4):
        grids = [(*grid, row) for grid in grids for row in rows if _fits(grid, row)]
    return ["".join(grid) for grid in grids]


def _fits(above: tuple[str, ...], row: str) -> bool:
    """Whether a row repeats nothing of the rows above in its columns and boxes."""
    if any(row[c] == other[c] for other in above for c in range(4)):
        return False
    boxed = above[-1:] if len(above) % 2 else ()
    return all(not set(row[c : c + 2]) & set(o[c : c + 2]) for o in boxed for c in (0, 2))


TASKS: dict[str, Callable[[random.Random], tuple[str, Callable[[str], bool]]]] = {
    "sudoku": _sudoku,
    "add": _add,
    "sort": _sort,
    "reverse": _reverse,
}
"""The tasks' generators: a question and the test of its answer."""

_GRIDS = _grids()
_GRIDS_SET = frozenset(_GRIDS)
