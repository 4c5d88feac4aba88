"""Word problems whose calculation is written out.

The writer is free in three choices, which bind the rest of the answer: the wording of all steps, whether
every product comes before the first sum, and the closing sentence. A model that writes several positions at
once has to agree with itself on them.
"""

import re
from dataclasses import dataclass
from random import Random

from .problem import Problem, weighted
from .words import BOXES, NAMES, THINGS

Equation = tuple[int, str, int, int]
"""Left operand, operator, right operand and result."""

WORDINGS = ("plain", "first", "numbered", "chain")
_WORDING_WEIGHTS = (0.4, 0.3, 0.2, 0.1)
_CLOSING_WEIGHTS = (0.5, 0.3, 0.2)


@dataclass(frozen=True)
class Story:
    """A word problem.

    Attributes:
        prompt: the text.
        name, thing: whose and what.
        steps: the equations in the order of the text; a product directly before the sum that uses it.
        shared: whether the question asks for one share instead of what ``name`` has.
    """

    prompt: str
    name: str
    thing: str
    steps: tuple[Equation, ...]
    shared: bool

    @property
    def orders(self) -> tuple[tuple[Equation, ...], ...]:
        """The two allowed orders: as in the text, and with every product first."""
        products = tuple(step for step in self.steps if step[1] == "*")
        return self.steps, products + tuple(step for step in self.steps if step[1] != "*")

    def closings(self, result: int) -> tuple[str, str, str]:
        """The three closing sentences."""
        have = f"Each share is {result}." if self.shared else f"{self.name} has {result} {self.thing}."
        return f"Answer: {result}.", have, f"So it is {result} {self.thing}."

    def is_right(self, text: str) -> bool:
        """Says whether ``text`` calculates the story in one of the wordings and closes it."""
        result = self.steps[-1][3]
        for closing in self.closings(result):
            if text.endswith(" " + closing):
                steps = read_steps(text.removesuffix(" " + closing))
                return steps is not None and steps in self.orders
        return False


def write_steps(steps: tuple[Equation, ...], wording: str) -> str:
    """Writes equations in one of ``WORDINGS``."""
    if wording == "first":
        words = ["First", *["Then"] * (len(steps) - 1)]
        lines = zip(words, steps, strict=True)
        return " ".join(f"{word}, {a} {op} {b} is {c}." for word, (a, op, b, c) in lines)
    if wording == "numbered":
        return " ".join(f"Step {i}: {a} {op} {b} = {c}." for i, (a, op, b, c) in enumerate(steps, 1))
    if wording == "chain":
        return "We get " + ", next ".join(f"{a} {op} {b} = {c}" for a, op, b, c in steps) + "."
    return " ".join(f"{a} {op} {b} = {c}." for a, op, b, c in steps)


def read_steps(text: str) -> tuple[Equation, ...] | None:
    """Reads equations back; None unless the text is exactly one wording of them."""
    found = re.findall(r"(\d+) ([-+*/]) (\d+) (?:=|is) (\d+)", text)
    steps = tuple((int(a), op, int(b), int(c)) for a, op, b, c in found)
    return steps if steps and any(write_steps(steps, wording) == text for wording in WORDINGS) else None


def draw(rng: Random) -> Story:
    """Draws a story of two or three events, with four equations at most."""
    name, other = rng.sample(NAMES, 2)
    thing = rng.choice(THINGS)
    have = rng.randint(10, 60)
    sentences = [f"{name} has {have} {thing}."]
    steps: list[Equation] = []
    shared = False
    count = rng.randint(2, 3)
    for event in range(count):
        buys = 0.4 if count == 2 or len(steps) == event else 0.0
        kind = weighted(rng, buys, 0.3, 0.3)
        divisors = [d for d in range(2, 7) if have % d == 0]
        if event == count - 1 and steps and divisors and rng.random() < 0.3:
            many = rng.choice(divisors)
            sentences.append(f"{name} splits them into {many} equal shares.")
            steps.append((have, "/", many, have // many))
            have, shared = have // many, True
        elif kind == 0:
            number, each = rng.randint(2, 9), rng.randint(2, 9)
            sentences.append(f"{name} buys {number} {rng.choice(BOXES)} of {each} {thing}.")
            steps += [(number, "*", each, number * each), (have, "+", number * each, have + number * each)]
            have += number * each
        elif kind == 1:
            more = rng.randint(2, 49)
            sentences.append(
                rng.choice((f"{other} gives {more} {thing} to {name}.", f"{name} finds {more} more {thing}."))
            )
            steps.append((have, "+", more, have + more))
            have += more
        else:
            less = rng.randint(2, max(2, min(49, have - 3)))
            sentences.append(
                rng.choice((f"{name} gives {less} {thing} to {other}.", f"{name} loses {less} {thing}."))
            )
            steps.append((have, "-", less, have - less))
            have -= less
    question = (
        f"How many {thing} are in a share?" if shared else f"How many {thing} does {name} have at the end?"
    )
    return Story(" ".join([*sentences, question]) + "\n", name, thing, tuple(steps), shared)


def make(rng: Random) -> Problem:
    """Draws a story and one of its right answers."""
    story = draw(rng)
    steps = rng.choice(story.orders)
    wording = WORDINGS[weighted(rng, *_WORDING_WEIGHTS)]
    closing = story.closings(steps[-1][3])[weighted(rng, *_CLOSING_WEIGHTS)]
    answer = f"{write_steps(steps, wording)} {closing}"
    return Problem("story", story.prompt, answer, story.is_right)
