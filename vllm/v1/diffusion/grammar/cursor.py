# SPDX-License-Identifier: Apache-2.0
"""Keeps what a request writes inside its grammar: the part that needs no device.

A grammar reads from left to right, a canvas unmasks in any order. So what a policy
unmasks behind the first mask is tentative: it is read once all before it is finished,
and what the grammar then does not admit is masked again, with all behind it. A model
that agrees with its grammar is therefore denoised exactly as without one.
"""

from __future__ import annotations

import time
from typing import Protocol

import numpy as np
import torch

from vllm.v1.structured_output.backend_types import StructuredOutputGrammar

_WORD = 32
"""Tokens in a word of a bitmask."""

_AT_FIRST = 1.0
"""Seconds of a processor that a grammar may take beside those for each token."""


class ReasoningEnd(Protocol):
    """Finds the end of the reasoning, which no grammar constrains."""

    def ends_with(self, token: int) -> bool:
        """Takes the next token; whether the reasoning has ended with it."""

    @property
    def token_is_content(self) -> bool:
        """Whether the token that ended the reasoning is the grammar's first."""


class GrammarCursor:
    """How far a request's text has been read, and which tokens may come next.

    Attributes:
        end_token: The token that ended the text, once it is read.
        seconds: Of a processor, that the grammar has taken.
        tokens: That it has read.
    """

    def __init__(
        self,
        grammar: StructuredOutputGrammar,
        bitmask: torch.Tensor,
        permitted: np.ndarray,
        reasoning: ReasoningEnd | None = None,
        time_limit: float = float("inf"),
    ) -> None:
        """Makes a cursor at the beginning of the text.

        Args:
            grammar: The compiled grammar, at its beginning.
            bitmask: A row as the grammar's backend fills it, int32 ``[1, words]``.
            permitted: Bits of the tokens that text may consist of, or end with,
                whatever the grammar, int32 ``[words]``.
            reasoning: Finds the end of the reasoning that the text begins with;
                None if there is none.
            time_limit: Seconds of a processor that it may take for each token, on average.
        """
        self.end_token: int | None = None
        self.seconds = 0.0
        self.tokens = 0
        self._time_limit = time_limit
        self._grammar = grammar
        self._bitmask = bitmask
        self._permitted = permitted
        self._reasoning = reasoning
        self._dead = False
        self._allowed: np.ndarray | None = None

    @property
    def dead(self) -> bool:
        """Whether no token of the vocabulary goes on with what was read; the request has failed then."""
        return self._dead

    @property
    def slow(self) -> bool:
        """Whether the grammar has taken more time than it may; the request has failed then."""
        return self.seconds > _AT_FIRST + self._time_limit * (self.tokens + 1)

    @property
    def allowed(self) -> np.ndarray | None:
        """Bits of the tokens that may come next, int32 ``[words]``; None for any."""
        if self._reasoning is not None or self._dead or self.end_token is not None:
            return None
        if self._allowed is None:
            begun = time.thread_time()
            self._grammar.fill_bitmask(self._bitmask, 0)
            self.seconds += time.thread_time() - begun
            self._allowed = np.zeros_like(self._permitted)
            filled = self._bitmask[0].numpy()[: len(self._allowed)]
            self._allowed[: len(filled)] = filled
            self._allowed &= self._permitted
            if not self._allowed.any():
                self._dead = True
                return None
        return self._allowed

    def permits(self, token: int) -> bool:
        """Whether a token may come next."""
        allowed = self.allowed
        return allowed is None or bool(allowed[token // _WORD] >> (token % _WORD) & 1)

    def only(self) -> int | None:
        """The one token that may come next; None where there is a choice."""
        allowed = self.allowed
        if allowed is None:
            return None
        words = np.flatnonzero(allowed)
        word = int(allowed[words[0]]) & 0xFFFFFFFF
        if len(words) > 1 or word & (word - 1):
            return None
        return self.first()

    def first(self) -> int:
        """The lowest token that may come next; there must be a choice to make."""
        allowed = self.allowed
        assert allowed is not None
        index = int(np.flatnonzero(allowed)[0])
        word = int(allowed[index]) & 0xFFFFFFFF
        return index * _WORD + (word & -word).bit_length() - 1

    def accept(self, token: int) -> bool:
        """Reads the next token, unless it is not permitted.

        Returns:
            Whether it was read.
        """
        if self._dead:
            return True
        if self._reasoning is not None:
            if not self._reasoning.ends_with(token):
                return True
            is_content = self._reasoning.token_is_content
            self._reasoning = None
            if not is_content:
                return True
        if not self.permits(token):
            return False
        begun = time.thread_time()
        accepted = self._grammar.accept_tokens("", [token])
        self.seconds += time.thread_time() - begun
        if not accepted:
            # Backends' bitmasks are upper bounds: what cannot be finished is found late.
            if self._allowed is not None:
                self._allowed[token // _WORD] &= ~np.array(1 << token % _WORD, np.uint32).view(np.int32)
                self._dead = not self._allowed.any()
            return False
        self._allowed = None
        self.tokens += 1
        if self._grammar.is_terminated():
            self.end_token = token
        return True


class CanvasGrammar:
    """One request's grammar on its open block.

    Attributes:
        column: The first position of the block that has not been read. It is masked
            whenever a step begins, and its logits are restricted to what may come.
    """

    def __init__(self, cursor: GrammarCursor, block_length: int, column: int) -> None:
        """Makes it.

        Args:
            cursor: The cursor, behind the tokens that are known.
            block_length: Tokens per block.
            column: Known tokens of the open block.
        """
        self.cursor = cursor
        self.column = column
        self._block_length = block_length
        self._read: list[int] = []
        """The block's tokens from the first that the model wrote up to ``column``."""
        self._left_to_right = False
        self._refused = False
        """Whether the last step wrote nothing: the grammar refused what it had seemed to permit."""

    def revise(self, tokens: list[int], masked: list[bool], proposal: int, covered: bool = True) -> bool:
        """Reads a block as far as it is finished, after a step; corrects what is not admitted.

        In a block where something had to be masked again the model and the grammar
        disagree. From then on, the block is finished from left to right: in each step one
        position at least, and as many more as the policy unmasked without a gap. So it is
        whatever the logits are: a row that holds no number proposes what no grammar permits,
        and the lowest token that may come is written there.

        A token that the grammar permits and then refuses is the model's to choose again, once.

        Args:
            tokens: The block's tokens that have rows of logits, changed.
            masked: Which of them are still masked, changed.
            proposal: The token that the model proposed for ``column`` in this step.
            covered: Whether the rows are the whole block.

        Returns:
            Whether the block is finished; the next call is then for the next block.
        """
        cursor, column = self.cursor, self.column
        first = column - len(self._read)
        tokens[first:column] = self._read
        masked[first:column] = [False] * len(self._read)
        while column < len(tokens) and cursor.end_token is None and not cursor.slow:
            token = cursor.only()
            if token is None:
                due = self._left_to_right and column == self.column
                if not masked[column] and not (due and not cursor.permits(tokens[column])):
                    token = tokens[column]
                elif due:
                    token = proposal if cursor.permits(proposal) else cursor.first()
                else:
                    break
            elif not masked[column] and token != tokens[column]:
                self._reopen(masked, column + 1)
            if not cursor.accept(token):
                due = self._left_to_right and column == self.column
                self._reopen(masked, column)
                if due and self._refused:
                    continue  # With what else may come: every refusal leaves fewer.
                self._refused = due
                break
            self._refused = False
            tokens[column], masked[column] = token, False
            column += 1
        if cursor.end_token is not None:
            # Whatever stands behind the end is not read by anyone.
            tokens[column:] = [cursor.end_token] * (len(tokens) - column)
            masked[column:] = [False] * (len(tokens) - column)
            column = len(tokens)
        elif self._left_to_right:
            self._reopen(masked, column)
        self._read.extend(tokens[self.column : column])
        self.column = column
        finished = (covered and column == len(tokens)) or column >= self._block_length
        if finished:
            self.column, self._read, self._left_to_right = 0, [], False
        return finished

    def _reopen(self, masked: list[bool], column: int) -> None:
        masked[column:] = [True] * (len(masked) - column)
        self._left_to_right = True


def bits_of(flags: np.ndarray) -> np.ndarray:
    """Packs a flag for each token, bool ``[V]``, as backends do: int32 ``[ceil(V / 32)]``."""
    padded = np.pad(flags, (0, -len(flags) % _WORD))
    return np.packbits(padded, bitorder="little").view(np.int32)
