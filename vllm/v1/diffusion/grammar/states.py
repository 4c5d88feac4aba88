# SPDX-License-Identifier: Apache-2.0
"""The grammars of a worker's requests, and what they change of a step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from xgrammar import apply_token_bitmask_inplace

from vllm.config import VllmConfig
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.canvas.step import DenoisingStep
from vllm.v1.diffusion.grammar.compiler import GrammarCompiler
from vllm.v1.diffusion.grammar.cursor import CanvasGrammar, GrammarCursor
from vllm.v1.diffusion.kernels.row_stats import RowStats
from vllm.v1.diffusion.modes.grid import BlockGrid

_UNWRITABLE = (
    "structured_outputs: the grammar cannot be written in this model's vocabulary, no token of which goes on "
    "with the text so far"
)


class GrammarStates:
    """Restricts logits before a step unmasks positions, corrects canvases after it.

    A step that holds a request with a grammar waits for the device once; no other does.
    """

    def __init__(self, vllm_config: VllmConfig, canvases: CanvasStates) -> None:
        """Makes the states.

        Args:
            vllm_config: The engine's configuration.
            canvases: The canvases of this worker's requests.
        """
        self.canvases = canvases
        self._compiler = GrammarCompiler(vllm_config)
        self._starting: dict[int, Callable[[], CanvasGrammar]] = {}
        self._grammars: dict[int, CanvasGrammar] = {}

    def add(self, slot: int, data: NewRequestData, grid: BlockGrid) -> None:
        """Takes a slot for a request, whether or not it has a grammar.

        Args:
            slot: The slot.
            data: The request.
            grid: Where its blocks lie.
        """
        if (compiled := self._compiler.start(data)) is not None:
            known = len(data.prefill_token_ids or [])
            column = known - grid.begin(known)
            self._starting[slot] = lambda: CanvasGrammar(compiled(), grid.block_length, column)

    def remove(self, slot: int) -> None:
        """Forgets the grammar of a request that has ended, compiled or not."""
        self._grammars.pop(slot, None)
        self._starting.pop(slot, None)

    @property
    def empty(self) -> bool:
        """Whether no request of the worker has a grammar."""
        return not self._grammars and not self._starting

    def restrict(self, logits: torch.Tensor, step: DenoisingStep) -> None:
        """Leaves, where a request's text has been read to, the tokens that may come next.

        Args:
            logits: The step's logits ``[N, V]``, changed.
            step: The step.
        """
        first_row = np.cumsum(step.row_counts) - step.row_counts
        restricted = [
            (first_row[i] + grammar.column, bits)
            for i, grammar in self._members(step)
            if (bits := grammar.cursor.allowed) is not None
        ]
        if not restricted:
            return
        device, size = logits.device, logits.shape[1]
        rows = async_tensor_h2d([row for row, _ in restricted], dtype=torch.int64, device=device)
        # Ids that a grammar's vocabulary does not have are forbidden: their bits are 0.
        words = np.zeros((len(restricted), -(-size // 32)), dtype=np.int32)
        for row, (_, bits) in zip(words, restricted, strict=True):
            row[: len(bits)] = bits[: len(row)]
        restricted_logits = logits[rows]
        apply_token_bitmask_inplace(restricted_logits, async_tensor_h2d(words, device=device))
        logits[rows] = restricted_logits

    def revise(
        self, finished: torch.Tensor, stats: RowStats, step: DenoisingStep, overlaps: bool
    ) -> dict[int, str] | None:
        """Reads what a step has unmasked: masks again, fills in, corrects.

        Args:
            finished: Which requests' blocks have no mask left, bool ``[R]``, changed.
            stats: The rows' statistics and tokens.
            step: The step.
            overlaps: Whether a window may not cover its block; see ``DenoisingStep``.

        Returns:
            Why requests cannot go on, by their number in the step's R: no token continues their text, or
            their grammar takes too long.
        """
        if not (members := self._members(step)):
            return None
        canvases, device, width = self.canvases, finished.device, self.canvases.width
        which = async_tensor_h2d([i for i, _ in members], dtype=torch.int64, device=device)
        slots = step.slots[which]
        rows = step.row_start[which].to(torch.int64)[:, None] + torch.arange(width, device=device)
        rows = rows.clamp(max=len(stats.sample) - 1)
        tokens, masked, sample = canvases.tokens[slots], canvases.masked[slots], stats.sample[rows]
        covered = step.covered[which, None]
        seen = torch.cat([tokens, sample, masked, covered], dim=1).cpu().numpy()

        for (i, grammar), row in zip(members, seen, strict=True):
            if overlaps and not row[-1]:
                continue
            count = int(step.row_counts[i])
            block, open_ = row[:count].tolist(), (row[2 * width :][:count] != 0).tolist()
            proposal = int(row[width + grammar.column])
            row[-1] &= grammar.revise(block, open_, proposal, covered=bool(row[-1]))
            row[:count], row[2 * width :][:count] = block, open_

        revised = async_tensor_h2d(seen, device=device)
        new_tokens, still_masked = revised[:, :width], revised[:, 2 * width : 3 * width] != 0
        written = ~still_masked & (masked | (new_tokens != tokens))
        # A token that was written in the place of the model's had no alternative.
        own = sample == new_tokens
        certain = torch.where(own, stats.sample_prob[rows], 1.0)
        entropy = torch.where(own, stats.entropy[rows], 0.0)
        step_now = canvases.step[slots][:, None] - 1
        unmasked_at = torch.where(still_masked, -1, canvases.unmasked_at[slots])
        canvases.unmasked_at[slots] = torch.where(written, step_now, unmasked_at)
        canvases.confidence[slots] = torch.where(written, certain, canvases.confidence[slots])
        canvases.entropy[slots] = torch.where(written, entropy, canvases.entropy[slots])
        canvases.tokens[slots] = torch.where(still_masked, canvases.noise.again(tokens), new_tokens)
        canvases.masked[slots] = still_masked
        finished[which] = revised[:, -1] != 0
        return {i: why for i, grammar in members if (why := self._failure(grammar.cursor)) is not None}

    def _failure(self, cursor: GrammarCursor) -> str | None:
        """Why a request cannot go on; None if it can."""
        if cursor.dead:
            return _UNWRITABLE
        if not cursor.slow:
            return None
        return (
            f"structured_outputs: the grammar took {cursor.seconds:.1f} seconds of a processor for "
            f"{cursor.tokens} tokens, and may take {self._compiler.time_limit} milliseconds for each "
            "(grammar_time_limit of --diffusion-config)"
        )

    def _members(self, step: DenoisingStep) -> list[tuple[int, CanvasGrammar]]:
        """The requests with a grammar: their number in the step's R, and the grammar."""
        if self.empty:
            return []
        members = []
        for i, slot in enumerate(step.slots_np.tolist()):
            if (starting := self._starting.pop(slot, None)) is not None:
                self._grammars[slot] = starting()
            if (grammar := self._grammars.get(slot)) is not None:
                members.append((i, grammar))
        return members
