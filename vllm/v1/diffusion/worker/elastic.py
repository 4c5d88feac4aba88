# SPDX-License-Identifier: Apache-2.0
"""Rows and sequences of canvases whose answer grows and shrinks.

The model writes an id that deletes its position, and one that puts two masks in its place. Both take effect
as soon as a step has written them. A window has rows for the longest answer. Rows behind the answer's end are
queries, but no sequence has their keys.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from typing_extensions import override

from vllm.config import VllmConfig
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.canvas.step import DenoisingStep
from vllm.v1.diffusion.families import Family
from vllm.v1.diffusion.kernels.row_stats import RowStats
from vllm.v1.diffusion.request.decoding import Decoding
from vllm.v1.diffusion.sampling.rows import DenoisedBatch
from vllm.v1.diffusion.worker.bidirectional import CanvasRows
from vllm.v1.diffusion.worker.sequences import Attention, Sequences, StagedSequences, canvas_rows, window_ends
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.states import RequestState

_FORBIDDEN = -1e9
"""The published code's logit of the id that expands, where nothing may be expanded."""


class ElasticRows(CanvasRows):
    """Deletes positions and replaces one by two masks, where the model has written so."""

    changes_logits: ClassVar[bool] = True

    def __init__(self, canvases: CanvasStates, family: Family) -> None:
        super().__init__(canvases, family)
        self.after_steps = (self._edit,)
        self._budget = torch.zeros(len(canvases.step), dtype=torch.int64, device=canvases.device)
        """How often each slot's request may still expand."""
        self._added: dict[int, int] = {}
        self._answers: tuple[torch.Tensor, torch.Tensor] | None = None
        """Requests of the batch that denoised, and the lengths of their answers."""

    @override
    def add(self, slot: int, decoding: Decoding, prompt_len: int) -> None:
        room = int(self.canvases.end.np[slot]) - prompt_len
        self._added[slot] = 2 * room if decoding.expand_budget is None else decoding.expand_budget

    @override
    def remove(self, slot: int) -> None:
        self._added.pop(slot, None)

    @override
    def begin_step(self, input_batch: InputBatch, request_states: RequestState) -> None:
        self._answers = None
        if self._added:
            added = np.array(list(self._added.items()), dtype=np.int64).T.copy()
            slots, budgets = async_tensor_h2d(added, device=self.canvases.device)
            self._budget[slots] = budgets
            self._added = {}

    @override
    def change_logits(self, logits: torch.Tensor, step: DenoisingStep) -> None:
        expand = self._ids[1]
        may = (self._room(step.slots) > 0) & (self._budget[step.slots] > 0)
        rows = torch.repeat_interleave(may, step.row_start.diff(), output_size=len(logits))
        logits[:, expand] = torch.where(rows, logits[:, expand], _FORBIDDEN)

    @override
    def emit(self, batch: DenoisedBatch) -> torch.Tensor:
        emitted = torch.zeros_like(batch.known)
        if self._answers is not None:
            index, lengths = self._answers
            # An answer of which everything was deleted is an end token: a request ends with tokens only.
            emitted[index] = lengths.clamp(min=1).to(emitted.dtype)
        return torch.where(batch.finished, emitted, 0)

    @property
    def _ids(self) -> tuple[int, int]:
        ids = self.canvases.edit_ids
        assert ids is not None
        return ids

    def _room(self, slots: torch.Tensor) -> torch.Tensor:
        """By how many positions answers may still grow, int64 ``[R]``."""
        canvases = self.canvases
        return canvases.end.gpu[slots] - canvases.start[slots] - canvases.length[slots]

    def _edit(self, stats: RowStats, step: DenoisingStep, done: torch.Tensor) -> torch.Tensor:
        """Executes what the step has written."""
        canvases, slots, columns = self.canvases, step.slots, self.canvases.columns
        delete, expand = self._ids
        tokens, masked = canvases.tokens[slots], canvases.masked[slots]
        inside = columns < canvases.length[slots, None]
        # What a template gives was never unmasked.
        written = inside & ~masked & (canvases.unmasked_at[slots] >= 0)
        deletes, expands = written & (tokens == delete), written & (tokens == expand)
        allowed = torch.minimum(self._room(slots) + deletes.sum(dim=1), self._budget[slots])
        doubles = expands & (expands.cumsum(dim=1) <= allowed[:, None])
        self._budget[slots] -= doubles.sum(dim=1)

        size = inside.to(torch.int64) - deletes.to(torch.int64) + doubles.to(torch.int64)
        target = size.cumsum(dim=1) - size
        length = size.sum(dim=1)
        # One column more takes what is dropped, and is dropped itself.
        width = canvases.width
        source = torch.full((len(slots), width + 1), -1, dtype=torch.int64, device=tokens.device)
        kept = inside & ~deletes & ~expands
        source = source.scatter_(1, torch.where(kept, target, width), columns.expand_as(target))[:, :width]
        moved, from_ = source >= 0, source.clamp(min=0)
        canvases.tokens[slots] = torch.where(moved, tokens.gather(1, from_), canvases.mask_token_id)
        masked = torch.where(moved, masked.gather(1, from_), columns < length[:, None])
        canvases.masked[slots] = masked
        for table, new in ((canvases.unmasked_at, -1), (canvases.confidence, 1.0), (canvases.entropy, 0.0)):
            table[slots] = torch.where(moved, table[slots].gather(1, from_), new)
        canvases.length[slots] = length.to(torch.int32)
        canvases.tokens[slots, 0] = torch.where(length > 0, canvases.tokens[slots, 0], delete)
        self._answers = step.index, length
        return ~masked.any(dim=1)


class ElasticAttention(Attention):
    """A bidirectional sequence for each prompt, and one for each row of its canvas.

    Backends want no sequence with more queries than keys, and how many keys there are only the device knows.
    """

    def __init__(self, vllm_config: VllmConfig, canvases: CanvasStates, device: torch.device) -> None:
        super().__init__(vllm_config, canvases, device)
        self._slots: torch.Tensor | None = None

    @override
    def sequences(self, input_batch: InputBatch, captured: bool) -> Sequences:
        lengths, slots = input_batch.num_scheduled_tokens, input_batch.idx_mapping_np
        window_end, rows = window_ends(input_batch), canvas_rows(input_batch)
        denoises, before = rows > 0, lengths - rows
        counts = rows + (before > 0)
        request = np.repeat(np.arange(len(lengths)), counts)
        nth = np.arange(len(request)) - np.repeat(np.cumsum(counts) - counts, counts)
        size = np.where((nth == 0) & (before[request] > 0), before[request], 1)
        query_start_loc = np.zeros(len(request) + 1, dtype=np.int32)
        query_start_loc[1:] = np.cumsum(size)
        # Before their first step requests are not on the device: they are as long as their template.
        begins, given = np.isin(slots, self.canvases.added), self.canvases.template_end.np[slots]
        longest = np.where(begins & (given > 0), given, self.canvases.end.np[slots])
        ends = np.where(denoises, longest, window_end)[request]
        staged = np.where((denoises & ~begins)[request], slots[request], -1).astype(np.int64)
        self._slots = async_tensor_h2d(staged, device=self.device) if denoises.any() else None
        return Sequences(request, query_start_loc, ends.astype(np.int32))

    @override
    def adjust(self, staged: StagedSequences, input_batch: InputBatch) -> None:
        if self._slots is None:
            return
        slots, canvases = self._slots.clamp(min=0), self.canvases
        end = (canvases.start[slots] + canvases.length[slots]).to(staged.seq_lens.dtype)
        lens = staged.seq_lens[: len(slots)]
        lens.copy_(torch.where(self._slots >= 0, end, lens))
