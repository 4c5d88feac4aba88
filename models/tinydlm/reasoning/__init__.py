"""Generated problems with several steps of reasoning, and the checkers of their answers."""

from collections.abc import Callable
from functools import cache
from random import Random

from . import programs, records, stories, sudoku
from .problem import Problem

__all__ = ["TASKS", "Problem", "draw", "held_out", "training"]

_MAKERS: dict[str, Callable[[Random], Problem]] = {
    "story": stories.make,
    "record": records.make,
    "program": programs.make,
    "naming": programs.make_naming,
}
TASKS = (*_MAKERS, "sudoku")


def draw(task: str, rng: Random, reserved: bool) -> Problem:
    """Draws a problem of a task, from those kept out of training (``reserved``) or from the others."""
    if task == "sudoku":
        return sudoku.make(rng, reserved)
    while (problem := _MAKERS[task](rng)).reserved != reserved:
        pass
    return problem


def training(task: str, rng: Random) -> Problem:
    """Draws a problem that training may show."""
    return draw(task, rng, reserved=False)


@cache
def held_out(task: str, count: int, seed: int) -> tuple[Problem, ...]:
    """Draws different problems that training never shows."""
    rng = Random(f"held out {task} {seed}")
    found: dict[str, Problem] = {}
    while len(found) < count:
        problem = draw(task, rng, reserved=True)
        found.setdefault(problem.prompt, problem)
    return tuple(found.values())
