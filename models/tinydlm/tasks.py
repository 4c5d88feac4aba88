"""Vectorised generators of training problems: thousands a call, on any device.

Each generator writes fixed-width rows of token ids in which ``BLANK`` marks unused columns;
``draw`` packs the rows to the left. Distributions are mixtures, since nobody knows how users draw
problems.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .problems import MAX_DIGITS, MAX_EMPTY, MAX_SYMBOLS, MIN_EMPTY, RESERVED_MODULUS, all_grids
from .vocab import EOS, encode

BLANK = -1
MAX_PROMPT = 27
MAX_ANSWER = 19
ZERO, LETTER_A = ord("0"), ord("a")
VOWELS = "aeiou"
CONSONANTS = "bcdfghjklmnpqrstvwxyz"
ENGLISH = "eeeeeeeeeeeetttttttttaaaaaaaaooooooooiiiiiiinnnnnnnsssssshhhhhhrrrrrr" + (
    "ddddllllcccuuummmwwffggyyppbvkjxqz"
)
"""Letters about as often as in English text."""


@dataclass(frozen=True)
class Batch:
    """Training problems, packed to the left.

    Attributes:
        tokens: ``[n, length]`` int64: prompt, answer, then ``EOS`` to the end of the row.
        prompt_len: ``[n]`` int64.
        answer_len: ``[n]`` int64, without the end token.
        trainable: ``[n]`` bool: false for puzzles reserved for evaluation.
    """

    tokens: Tensor
    prompt_len: Tensor
    answer_len: Tensor
    trainable: Tensor


class Sampler:
    """Draws problems on one device from one seed."""

    def __init__(self, seed: int, device: torch.device) -> None:
        """Prepares tables on ``device`` and seeds the generator."""
        self.device = device
        self.rng = torch.Generator(device=device).manual_seed(seed)
        self.grids = torch.tensor(all_grids(), device=device)
        self.powers = 10 ** torch.arange(MAX_DIGITS, -1, -1, device=device)
        self.fives = 5 ** torch.arange(16, device=device)
        self.columns = torch.arange(MAX_SYMBOLS, device=device)
        self.constants: dict[str, Tensor] = {}

    def uniform(self, *shape: int) -> Tensor:
        """Uniform float32 numbers in [0, 1)."""
        return torch.rand(shape, generator=self.rng, device=self.device)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Uniform int64 numbers in [low, high)."""
        return torch.randint(low, high, shape, generator=self.rng, device=self.device)

    def text(self, n: int, text: str) -> Tensor:
        """The same text in every row; kept, since each new copy to the device waits for it."""
        if text not in self.constants:
            self.constants[text] = torch.tensor(encode(text), device=self.device)
        return self.constants[text].expand(n, -1)

    def pick(self, text: str, n: int) -> Tensor:
        """Rows of ``MAX_SYMBOLS`` characters drawn from ``text``."""
        return self.text(1, text)[0][self.integers(0, len(text), n, MAX_SYMBOLS)]

    def digits(self, value: Tensor, width: int) -> Tensor:
        """Decimal digits of ``value`` ``[n]``, right-aligned, blank on the left."""
        powers = self.powers[-width:]
        shown = (value[:, None] >= powers) | (powers == 1)
        return torch.where(shown, value[:, None] // powers % 10 + ZERO, BLANK)

    def symbols(self, n: int, alphabet: int) -> Tensor:
        """Rows of ``MAX_SYMBOLS`` numbers below ``alphabet``; a third have few distinct ones."""
        free = self.integers(0, alphabet, n, MAX_SYMBOLS)
        few = 1 + (self.uniform(n, 1) * 4).long()
        chosen = self.uniform(n, alphabet).argsort(1)
        narrow = chosen.gather(1, (self.uniform(n, MAX_SYMBOLS) * few).long())
        return torch.where(self.uniform(n, 1) < 1 / 3, narrow, free)

    def lengths(self, n: int) -> Tensor:
        """Numbers of symbols ``[n, 1]``, 1 to ``MAX_SYMBOLS``: uniform, or biased to long ones."""
        skewed = torch.where(self.uniform(n, 1) < 0.5, self.uniform(n, 1), self.uniform(n, 1).sqrt())
        return 1 + (skewed * MAX_SYMBOLS).long()

    def sudoku(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """4x4 Sudoku with 4 to 12 cells empty; the target is the lexicographically first solution.

        Half of the puzzles have few givens, since those are the ones that are got wrong.
        """
        grid = self.grids[self.integers(0, len(self.grids), n)]
        empty = self.integers(MIN_EMPTY, MAX_EMPTY + 1, n, 1)
        hard = self.integers(MAX_EMPTY - 2, MAX_EMPTY + 1, n, 1)
        empty = torch.where(self.uniform(n, 1) < 0.5, empty, hard)
        puzzle = torch.where(self.uniform(n, 16).argsort(1) < empty, 0, grid)
        fits = ((puzzle[:, None] == 0) | (puzzle[:, None] == self.grids)).all(2)
        solution = self.grids[fits.int().argmax(1)]
        trainable = (puzzle * self.fives).sum(1) % RESERVED_MODULUS != 0
        slash, rows = self.text(n, "/"), range(0, 16, 4)

        def lines(cells: Tensor) -> Tensor:
            parts = [part for r in rows for part in (cells[:, r : r + 4] + ZERO, slash)]
            return torch.cat(parts[:-1], 1)

        prompt = torch.cat([self.text(n, "sudoku "), lines(puzzle), self.text(n, "=")], 1)
        return prompt, lines(solution), trainable

    def add(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Sums: by length, by value, with long carries, and of equal or zero operands."""
        size = self.integers(1, MAX_DIGITS + 1, n, 2)
        low = torch.where(size > 1, 10 ** (size - 1), 0)
        pair = low + (self.uniform(n, 2) * (10**size - low)).long()
        left, right = pair[:, 0], pair[:, 1]
        kind = self.uniform(n)
        flat = self.integers(0, 10**MAX_DIGITS, n, 2)
        carry = (10 ** size[:, 0] - 1 - left + self.integers(-1, 3, n)).clamp(0, 10**MAX_DIGITS - 1)
        special = torch.where(self.uniform(n) < 0.5, left, 0)
        right = torch.where(kind < 0.25, flat[:, 1], right)
        left = torch.where(kind < 0.25, flat[:, 0], left)
        right = torch.where((kind >= 0.25) & (kind < 0.4), carry, right)
        right = torch.where((kind >= 0.4) & (kind < 0.45), special, right)
        swap = self.uniform(n) < 0.5
        left, right = torch.where(swap, right, left), torch.where(swap, left, right)
        parts = [self.text(n, "add "), self.digits(left, MAX_DIGITS), self.text(n, "+")]
        parts += [self.digits(right, MAX_DIGITS), self.text(n, "=")]
        return torch.cat(parts, 1), self.digits(left + right, MAX_DIGITS + 1), self._all(n)

    def sort(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Digits to be put in ascending order."""
        unused = self.columns >= self.lengths(n)
        digits = self.symbols(n, 10) + ZERO
        ordered = digits.masked_fill(unused, 2 * ZERO).sort(1).values
        prompt = [self.text(n, "sort "), digits.masked_fill(unused, BLANK), self.text(n, "=")]
        return torch.cat(prompt, 1), ordered.masked_fill(unused, BLANK), self._all(n)

    def reverse(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Words to be spelt backwards: random, of few letters, of syllables, English letters."""
        unused = self.columns >= self.lengths(n)
        kind = self.uniform(n, 1)
        phase = self.columns + self.integers(0, 2, n, 1) + (self.uniform(n, MAX_SYMBOLS) < 0.1)
        spoken = torch.where(phase % 2 == 0, self.pick(VOWELS, n), self.pick(CONSONANTS, n))
        letters = torch.where(kind < 0.25, spoken, self.symbols(n, 26) + LETTER_A)
        letters = torch.where(kind > 0.8, self.pick(ENGLISH, n), letters)
        letters = letters.masked_fill(unused, BLANK)
        prompt = [self.text(n, "reverse "), letters, self.text(n, "=")]
        return torch.cat(prompt, 1), letters.flip(1), self._all(n)

    def _all(self, n: int) -> Tensor:
        return torch.ones(n, dtype=torch.bool, device=self.device)

    def draw(self, shares: dict[str, int], length: int) -> Batch:
        """Draws ``shares[task]`` problems of each task.

        Args:
            shares: number of problems by task name.
            length: columns of the result, at least ``MAX_PROMPT + MAX_ANSWER + 1``.
        """
        makers: dict[str, Callable[[int], tuple[Tensor, Tensor, Tensor]]] = {
            "sudoku": self.sudoku,
            "add": self.add,
            "sort": self.sort,
            "reverse": self.reverse,
        }
        batches = []
        for task, count in shares.items():
            prompt, answer, trainable = makers[task](count)
            spare = length - prompt.shape[1] - answer.shape[1]
            tail = torch.full((count, spare), BLANK, device=self.device)
            row = torch.cat([prompt, answer, tail], 1)
            order = (row == BLANK).byte().argsort(dim=1, stable=True)
            packed = row.gather(1, order)
            tokens = packed.masked_fill(packed == BLANK, EOS)
            batches.append(Batch(tokens, (prompt != BLANK).sum(1), (answer != BLANK).sum(1), trainable))
        return Batch(
            torch.cat([batch.tokens for batch in batches]),
            torch.cat([batch.prompt_len for batch in batches]),
            torch.cat([batch.answer_len for batch in batches]),
            torch.cat([batch.trainable for batch in batches]),
        )
