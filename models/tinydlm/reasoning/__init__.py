"""Generated problems with several steps of reasoning, and the checkers of their answers."""

from collections.abc import Callable
from random import Random

from . import programs, records, stories, sudoku
from .problem import Problem

MAKERS: dict[str, Callable[[Random], Problem]] = {
    "story": stories.make,
    "record": records.make,
    "program": programs.make,
    "sudoku": sudoku.make,
}
TASKS = tuple(MAKERS)


def training(task: str, rng: Random) -> Problem:
    """Draws a problem that training may show."""
    while (problem := MAKERS[task](rng)).reserved:
        pass
    return problem


def held_out(task: str, count: int, seed: int) -> list[Problem]:
    """Draws different problems that training never shows."""
    rng = Random(f"held out {task} {seed}")
    found: dict[str, Problem] = {}
    while len(found) < count:
        problem = MAKERS[task](rng)
        if problem.reserved:
            found.setdefault(problem.prompt, problem)
    return list(found.values())
