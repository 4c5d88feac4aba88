"""Rewriting of code-like text.

``branches`` allows two ways of negating. The task ``naming``, which is ``fresh`` alone, leaves the new names
to the writer, who has to keep to them. The other kinds have one answer.
"""

import re
from collections.abc import Callable
from random import Random

from .problem import Problem, weighted
from .words import FRESH, FUNCTIONS, LETTERS, LISTS

_NEGATED = {"<": ">=", ">": "<=", "<=": ">", ">=": "<", "==": "!=", "!=": "=="}
_IDENTIFIER = re.compile(r"[A-Za-z]+")


def substitute(code: str, names: dict[str, str]) -> str:
    """Replaces whole identifiers."""
    return _IDENTIFIER.sub(lambda match: names.get(match[0], match[0]), code)


def _one_of(*answers: str) -> Callable[[str], bool]:
    return lambda text: text in answers


def _operand(rng: Random, names: list[str]) -> str:
    return rng.choice(names) if rng.random() < 0.6 else str(rng.randint(2, 9))


def function(rng: Random, lines: int) -> tuple[str, list[str]]:
    """A function of ``lines`` assignments, and its variables in the order of their appearance."""
    variables = rng.sample(LETTERS, rng.randint(2, 3))
    known = variables[: rng.randint(1, 2)]
    code = [f"def {rng.choice(FUNCTIONS)}({', '.join(known)}):"]
    for index in range(lines):
        left = rng.choice(known)
        fresh = [name for name in variables if name not in known]
        target = fresh[0] if fresh else rng.choice(variables)
        code.append(f"    {target} = {left} {rng.choice('+-*')} {_operand(rng, known)}")
        if target not in known:
            known.append(target)
        if index == lines - 1:
            code.append(f"    return {target}")
    return "\n".join(code), known


def fresh(rng: Random) -> tuple[str, str, Callable[[str], bool]]:
    """Single letters become words of the writer's choice."""
    code, variables = function(rng, rng.randint(2, 3))
    names = dict(zip(variables, rng.sample(FRESH, len(variables)), strict=True))

    def is_right(text: str) -> bool:
        before, after = _IDENTIFIER.findall(code), _IDENTIFIER.findall(text)
        if len(before) != len(after):
            return False
        chosen = {old: new for old, new in zip(before, after, strict=True) if old in variables}
        longer = all(len(new) > 1 and new not in before for new in chosen.values())
        return longer and len(set(chosen.values())) == len(chosen) and substitute(code, chosen) == text

    return f"New names:\n{code}\n", substitute(code, names), is_right


def rename(rng: Random) -> tuple[str, str, Callable[[str], bool]]:
    """One variable gets the name that the prompt gives."""
    code, variables = function(rng, rng.randint(2, 3))
    old, new = rng.choice(variables), rng.choice(FRESH)
    answer = substitute(code, {old: new})
    return f"Rename {old} to {new}:\n{code}\n", answer, _one_of(answer)


def _loop_parts(rng: Random) -> tuple[str, str]:
    """A comprehension and the loop that does the same."""
    name, (out, source) = rng.choice(LETTERS), (rng.choice(FRESH), rng.choice(LISTS))
    value = f"{name} {rng.choice('+-*')} {rng.randint(2, 9)}"
    if rng.random() < 0.3:
        value = f"{rng.choice(FUNCTIONS)}({name})"
    test = f"{name} {rng.choice(list(_NEGATED))} {rng.randint(0, 9)}" if rng.random() < 0.6 else ""
    comprehension = f"{out} = [{value} for {name} in {source}{' if ' + test if test else ''}]"
    lines = [f"{out} = []", f"for {name} in {source}:"]
    if test:
        lines.append(f"    if {test}:")
    lines.append(f"    {'    ' if test else ''}{out}.append({value})")
    return comprehension, "\n".join(lines)


def comprehension(rng: Random) -> tuple[str, str, Callable[[str], bool]]:
    """A loop becomes a comprehension."""
    short, long = _loop_parts(rng)
    return f"As a comprehension:\n{long}\n", short, _one_of(short)


def loop(rng: Random) -> tuple[str, str, Callable[[str], bool]]:
    """A comprehension becomes a loop."""
    short, long = _loop_parts(rng)
    return f"As a loop:\n{short}\n", long, _one_of(long)


def branches(rng: Random) -> tuple[str, str, Callable[[str], bool]]:
    """The branches of an ``if`` are swapped and its test negated, by operator or by ``not``."""
    tested, *targets = rng.sample(LETTERS, 3)
    left, right = (f"{rng.choice(targets)} = {_operand(rng, targets)}" for _ in range(2))
    op, number = rng.choice(list(_NEGATED)), rng.randint(0, 9)

    def write(test: str, first: str, second: str) -> str:
        return f"if {test}:\n    {first}\nelse:\n    {second}"

    operator = write(f"{tested} {_NEGATED[op]} {number}", right, left)
    negation = write(f"not {tested} {op} {number}", right, left)
    answer = (operator, negation)[weighted(rng, 0.6, 0.4)]
    code = write(f"{tested} {op} {number}", left, right)
    return f"Swap the branches:\n{code}\n", answer, _one_of(operator, negation)


KINDS = (rename, comprehension, loop, branches)


def make(rng: Random) -> Problem:
    """Draws a rewriting that says what to write, and one of its right answers."""
    prompt, answer, is_right = rng.choice(KINDS)(rng)
    return Problem("program", prompt, answer, is_right)


def make_naming(rng: Random) -> Problem:
    """Draws a renaming whose names are free, and one of its right answers."""
    prompt, answer, is_right = fresh(rng)
    return Problem("naming", prompt, answer, is_right)
