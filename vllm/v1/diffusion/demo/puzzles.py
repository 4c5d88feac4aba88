# SPDX-License-Identifier: Apache-2.0
"""Puzzles that the bundled checkpoints solve, with answers that can be checked."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

MIN_EMPTY, MAX_EMPTY = 4, 12
"""Empty cells of a Sudoku."""
MAX_DIGITS = 4
"""Digits of an operand of ``add``."""
MAX_SYMBOLS = 12
"""Digits of ``sort``, letters of ``reverse``."""

_DIGITS = "0123456789"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_WORDS = (
    "a", "be", "sun", "moon", "level", "banana", "letter", "stone", "bottle", "rhythm",
    "journey", "balloon", "keyboard", "notebook", "mississippi", "bookkeeper",
    "waterfall", "strength", "committee", "telephone", "butterfly", "parenthesis",
)  # fmt: skip


@dataclass(frozen=True)
class Puzzle:
    """A prompt and the test that its answer must pass."""

    task: str
    prompt: str
    is_right: Callable[[str], bool]


def make_puzzle(task: str, rng: random.Random) -> Puzzle:
    """Draws a puzzle.

    Lengths are uniform over what the task allows. A third of the sums, sorts and
    reversals are of kinds that uniform draws seldom give: long carries, equal or zero
    operands, few distinct symbols, words.

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
    for cell in rng.sample(range(16), rng.randint(MIN_EMPTY, MAX_EMPTY)):
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
    a, b = _number(rng), _number(rng)
    kind = rng.randrange(12)
    if kind < 2:  # The carry runs through all digits, or just not.
        top = 10 ** len(str(a))
        b = min(top - a + rng.randint(-1, 1), 10**MAX_DIGITS - 1)
    elif kind == 2:
        b = a
    elif kind == 3:
        b = 0
    if rng.random() < 0.5:
        a, b = b, a
    return f"{a}+{b}", str(a + b).__eq__


def _number(rng: random.Random) -> int:
    digits = rng.randint(1, MAX_DIGITS)
    return rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def _sort(rng: random.Random) -> tuple[str, Callable[[str], bool]]:
    digits = _symbols(rng, _DIGITS)
    return digits, "".join(sorted(digits)).__eq__


def _reverse(rng: random.Random) -> tuple[str, Callable[[str], bool]]:
    word = rng.choice(_WORDS) if rng.random() < 1 / 6 else _symbols(rng, _LETTERS)
    return word, word[::-1].__eq__


def _symbols(rng: random.Random, alphabet: str) -> str:
    """1 to ``MAX_SYMBOLS`` symbols; one draw in six has at most three distinct ones."""
    if rng.random() < 1 / 6:
        alphabet = "".join(rng.sample(alphabet, rng.randint(1, 3)))
    return "".join(rng.choices(alphabet, k=rng.randint(1, MAX_SYMBOLS)))


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
