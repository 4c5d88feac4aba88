"""What a problem is, and which problems are kept out of training."""

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass

RESERVED_MODULUS = 97


@dataclass(frozen=True)
class Problem:
    """A prompt with one right answer.

    Attributes:
        task: name of its kind.
        prompt: what the model reads.
        answer: one right answer, drawn from those that the task allows.
        is_right: whether a text answers the prompt; it allows every right answer.
    """

    task: str
    prompt: str
    answer: str
    is_right: Callable[[str], bool]

    @property
    def reserved(self) -> bool:
        """Whether the problem is kept for evaluation."""
        return is_reserved(self.prompt)


def is_reserved(prompt: str) -> bool:
    """Says whether a prompt is kept out of training: about one in 97 is."""
    return zlib.crc32(prompt.encode()) % RESERVED_MODULUS == 0


def weighted(rng: random.Random, *weights: float) -> int:
    """Draws an index with a probability proportional to its weight."""
    return rng.choices(range(len(weights)), weights)[0]
