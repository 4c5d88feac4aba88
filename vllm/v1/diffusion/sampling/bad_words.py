# SPDX-License-Identifier: Apache-2.0
"""Bad words on a canvas: they stay out of the output in whatever order it unmasks.

A word is a sequence of tokens. A position may not take the token that would complete a
word whose other tokens are all known, on either side. Two positions of one word may still
be written in the same step: of those, the least confident one is taken back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from vllm.sampling_params import SamplingParams
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.canvas.step import DenoisingStep
from vllm.v1.worker.gpu.states import RequestState

MOST_PLACES = 1 << 22
"""Tokens of words under all alignments that are compared at a time, of 8 bytes in each of a few tensors."""


class Snapshot(NamedTuple):
    """Canvases of a step's requests; see ``CanvasStates``, each ``[R, W]``."""

    tokens: torch.Tensor
    masked: torch.Tensor
    unmasked_at: torch.Tensor
    confidence: torch.Tensor
    entropy: torch.Tensor


class BadWords:
    """The bad words of all requests of a worker.

    Tensors are ``[E, A, k]``: E words of k tokens, one for each request and word; A
    alignments of a word with the canvas, from one that ends in the first column to one
    that begins in the last; the word's tokens.
    """

    def __init__(self, canvases: CanvasStates, requests: RequestState) -> None:
        """Makes the state.

        Args:
            canvases: The canvases of this worker's requests.
            requests: The runner's request state.
        """
        self.canvases = canvases
        self.requests = requests
        self._words: dict[int, list[list[int]]] = {}

    def add_request(self, slot: int, params: SamplingParams) -> bool:
        """Notes a request's bad words that fit into its answer; whether there are any."""
        most = params.max_tokens
        words = [w for w in params.bad_words_token_ids or () if most is None or len(w) <= most]
        if words:
            self._words[slot] = words
        return bool(words)

    def remove(self, slot: int) -> None:
        """Forgets the words of a request that has ended."""
        self._words.pop(slot, None)

    def ban(self, logits: torch.Tensor, held: torch.Tensor, step: DenoisingStep) -> None:
        """Bans what would complete a word, in place.

        Args:
            logits: Rows of some positions, float32 ``[M, V]``.
            held: Of each request the first column that has a row here, the one behind the
                last, and the first one's row, int64 ``[3, R]``; both columns 0 for none.
            step: The step.
        """
        begin, end, first_row = held[..., None, None]
        flat = logits.view(-1)
        vocab_size = logits.shape[1]
        for request, words in self._groups(step, shortest=1):
            tokens, known = self._windows(step, words.shape[1])
            missing = (tokens[request] != words[:, None]) | ~known[request]
            others = missing.sum(-1, keepdim=True) - missing.to(torch.int64)
            column, inside = self._columns(words.shape[1], step, request)
            inside &= (column >= begin[request]) & (column < end[request])
            row = first_row[request] + column - begin[request]
            banned = torch.where(inside & (others == 0), -torch.inf, 0.0)
            where = torch.where(inside, row, 0) * vocab_size + words[:, None]
            flat.index_add_(0, where.view(-1), banned.view(-1))

    def snapshot(self, step: DenoisingStep) -> Snapshot | None:
        """The canvases before a step writes; None if no word can be written in one step."""
        if not self._words:
            return None
        if not any(len(w) > 1 for s in step.slots_np.tolist() for w in self._words.get(s, ())):
            return None
        canvases, slots = self.canvases, step.slots
        return Snapshot(
            canvases.tokens[slots],
            canvases.masked[slots],
            canvases.unmasked_at[slots],
            canvases.confidence[slots],
            canvases.entropy[slots],
        )

    def take_back(self, step: DenoisingStep, before: Snapshot) -> torch.Tensor:
        """Undoes what completes a word along with another position of the step.

        The most confident position that was written stays, so every step gets on.

        Returns:
            Positions that are again as before, bool ``[R, W]``.
        """
        canvases, slots = self.canvases, step.slots
        written = before.masked & ~canvases.masked[slots]
        written |= ~before.masked & (canvases.tokens[slots] != before.tokens)
        order = canvases.confidence[slots].masked_fill(~written, torch.inf)
        order = order.argsort(dim=1, descending=True, stable=True)
        rank = order.argsort(dim=1).masked_fill(~written, -1)
        undone = self._worst_of_words(step, rank)
        self._restore(undone, step, before)
        if any(p.rewrites for s in step.slots_np.tolist() if (p := canvases.policies.get(s))):
            # A token that a rewriting took the place of may complete a word as well. The
            # best position alone cannot: it was drawn beside the others' old tokens.
            rest = rank.masked_fill(undone, -1)
            again = self._worst_of_words(step, rest, fewest=1).any(dim=1, keepdim=True)
            best = rank == rank.masked_fill(rank < 0, canvases.width).amin(dim=1, keepdim=True)
            more = again & written & ~best & ~undone
            self._restore(more, step, before)
            undone = undone | more
        return undone

    def _worst_of_words(self, step: DenoisingStep, rank: torch.Tensor, fewest: int = 2) -> torch.Tensor:
        """Of each bad word with so many ranked positions the last in rank, bool ``[R, W]``.

        Args:
            step: The step.
            rank: 0 for the most confident; -1 for positions that were not written.
            fewest: Ranked positions that a word must have.
        """
        worst = torch.zeros_like(rank)
        for request, words in self._groups(step, shortest=2):
            length = words.shape[1]
            tokens, known = self._windows(step, length)
            complete = ((tokens[request] == words[:, None]) & known[request]).all(-1, keepdim=True)
            padded = torch.nn.functional.pad(rank, (length - 1, length - 1), value=-1)
            ranks = padded.unfold(1, length, 1)[request]
            enough = (ranks >= 0).sum(-1, keepdim=True) >= fewest
            column, inside = self._columns(length, step, request)
            found = complete & enough & inside & (ranks == ranks.amax(-1, keepdim=True))
            where = request[:, None, None] * self.canvases.width + torch.where(inside, column, 0)
            worst.view(-1).index_add_(0, where.view(-1), found.view(-1).to(worst.dtype))
        return worst > 0

    def _restore(self, positions: torch.Tensor, step: DenoisingStep, before: Snapshot) -> None:
        canvases = self.canvases
        grades = (canvases.confidence, canvases.entropy)
        now = (canvases.tokens, canvases.masked, canvases.unmasked_at, *grades)
        for values, old in zip(now, before, strict=True):
            values[step.slots] = torch.where(positions, old, values[step.slots])

    def _groups(self, step: DenoisingStep, shortest: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Words of one length, int64 ``[E, k]``, and their requests, int64 ``[E]``; some at a time."""
        groups: dict[int, tuple[list[int], list[list[int]]]] = {}
        for i, slot in enumerate(step.slots_np.tolist()):
            for word in self._words.get(slot, ()):
                if len(word) >= shortest:
                    requests, words = groups.setdefault(len(word), ([], []))
                    requests.append(i)
                    words.append(word)
        device = step.slots.device
        for length, (requests, words) in groups.items():
            most = max(1, MOST_PLACES // (length * (self.canvases.width + length - 1)))
            for first in range(0, len(words), most):
                some = slice(first, first + most)
                yield (
                    async_tensor_h2d(requests[some], dtype=torch.int64, device=device),
                    async_tensor_h2d(np.array(words[some]), dtype=torch.int64, device=device),
                )

    def _windows(self, step: DenoisingStep, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Output tokens under each alignment, and whether they are known, ``[R, A, k]``."""
        canvases, slots = self.canvases, step.slots.to(torch.int64)
        start, prompt_len = canvases.start[slots], self.requests.prompt_len.gpu[slots]
        left = torch.arange(1 - length, 0, device=slots.device) + start[:, None]
        columns = torch.arange(canvases.width, device=slots.device)
        before = self.requests.all_token_ids.gpu[slots[:, None], left.clamp(min=0)]
        known = ~canvases.masked[slots] & (columns < canvases.length[slots][:, None])
        known &= columns + start[:, None] >= prompt_len[:, None]
        tokens = torch.cat((before.to(torch.int64), canvases.tokens[slots]), dim=1)
        known = torch.cat((left >= prompt_len[:, None], known), dim=1)
        tokens = torch.nn.functional.pad(tokens, (0, length - 1))
        known = torch.nn.functional.pad(known, (0, length - 1))
        return tokens.unfold(1, length, 1), known.unfold(1, length, 1)

    def _columns(
        self, length: int, step: DenoisingStep, request: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Column of each token, ``[1, A, k]``; whether the step has a row for it, ``[E, A, k]``."""
        device = request.device
        alignments = torch.arange(1 - length, self.canvases.width, device=device)
        column = (alignments[:, None] + torch.arange(length, device=device))[None]
        rows = step.row_start.diff()[request][:, None, None]
        return column, (column >= 0) & (column < rows)
