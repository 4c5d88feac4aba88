# SPDX-License-Identifier: Apache-2.0
"""Which rows of their blocks requests compute that have ``rows="elastic"``, on the device.

How many they are, ``request/row_budget.py`` says. In order of their worth: the masked positions that are next
in the algorithm's order by what was last said of them, as many as there are rows of logits; what was
unmasked since it was computed, whose keys and values are those of a mask; the other masked positions; all
others.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.canvas.step import DenoisingStep
from vllm.v1.diffusion.kernels.row_stats import RowStats
from vllm.v1.diffusion.kernels.rules import Rule
from vllm.v1.worker.gpu.input_batch import InputBatch

_LEFT_OUT = -1.0
"""Confidence of a masked position that a step did not compute: it ranks behind all that it did."""


class PartialWindows(NamedTuple):
    """The n requests of a batch that compute a part of their block, on the host, int64 ``[n]`` each.

    Attributes:
        requests: Their places in the batch.
        rows: Rows of each.
        candidates: Rows of logits of each; these rows come last.
    """

    requests: np.ndarray
    rows: np.ndarray
    candidates: np.ndarray

    @classmethod
    def of(cls, input_batch: InputBatch, canvases: CanvasStates) -> PartialWindows | None:
        """Those of a batch; None for none.

        Args:
            input_batch: The step's batch.
            canvases: The canvases of this worker's requests.
        """
        slots = input_batch.idx_mapping_np
        # A dummy batch has rows of logits too, but no canvas.
        if not input_batch.num_draft_tokens or not canvases.elastic[slots].any():
            return None
        rows = np.asarray(input_batch.num_scheduled_tokens, dtype=np.int64)
        candidates = np.diff(input_batch.cu_num_logits_np[: len(slots) + 1]).astype(np.int64)
        # Only a block's first step has a row of logits for each of its positions.
        partial = canvases.elastic[slots] & (candidates > 0) & (candidates < canvases.block_length.np[slots])
        requests = np.flatnonzero(partial)
        return cls(requests, rows[requests], candidates[requests]) if len(requests) else None


class RowBudget:
    """Chooses rows, and remembers how confident the model was of masked positions."""

    def __init__(self, canvases: CanvasStates) -> None:
        """Makes it.

        Args:
            canvases: The canvases of this worker's requests.
        """
        self.canvases = canvases
        self._confidence = torch.zeros(canvases.masked.shape, device=canvases.device)
        """Of each position when it was computed last as a mask of its block, float32 ``[S, W]``."""
        self._computed_at = torch.zeros_like(canvases.unmasked_at)
        """The step that computed a position last, int32 ``[S, W]``."""

    def place(self, input_batch: InputBatch, windows: PartialWindows) -> None:
        """Gives rows their positions, and rows of logits their columns.

        Args:
            input_batch: The step's batch; ``positions`` and ``expanded_local_pos`` are changed.
            windows: Those of the batch.
        """
        which = np.repeat(np.arange(len(windows.rows)), windows.rows)
        nth = np.arange(len(which)) - np.repeat(np.cumsum(windows.rows) - windows.rows, windows.rows)
        logits = nth >= (windows.rows - windows.candidates)[which]
        # In the order of worth candidates are first; in the window they are last.
        worth = (nth + windows.candidates[which]) % windows.rows[which]
        row = input_batch.query_start_loc_np[windows.requests][which] + nth
        first = input_batch.cu_num_logits_np[windows.requests] - (windows.rows - windows.candidates)
        logits_row = first[which] + nth
        device = self.canvases.device
        which_at, worth_at, row_at = async_tensor_h2d(
            np.stack((which, worth, row)).astype(np.int64), device=device
        )
        picked = np.flatnonzero(logits)
        picked_at, logits_at = async_tensor_h2d(
            np.stack((picked, logits_row[picked])).astype(np.int64), device=device
        )
        staged = np.stack((input_batch.idx_mapping_np[windows.requests], windows.candidates))
        slots, candidates = async_tensor_h2d(staged.astype(np.int64), device=device)
        nth_at, first_at = async_tensor_h2d(np.stack((nth, row - nth)).astype(np.int64), device=device)
        begin, slot = input_batch.positions[first_at], slots[which_at]
        # A window of a block that has finished in the step before computes some of it, for nothing.
        stays = begin == self.canvases.start[slot]
        column = torch.where(stays, self._order(slots, candidates)[which_at, worth_at], nth_at)
        input_batch.positions.index_copy_(0, row_at, begin + column)
        self._computed_at[slot, column] = self.canvases.step[slot]
        local = input_batch.expanded_local_pos
        # The runner makes these anew in every step.
        local.index_copy_(0, logits_at, column[picked_at].to(local.dtype))

    def spread(self, stats: RowStats, step: DenoisingStep) -> tuple[RowStats, DenoisingStep]:
        """A step's statistics, and the step, with a row for every column of each block.

        Args:
            stats: Of the rows that were computed.
            step: The step, of the same rows.
        """
        canvases = self.canvases
        if not canvases.elastic[step.slots_np].any():
            return stats, step
        cell = step.row_slot, step.row_column
        held = self._confidence[cell]
        self._confidence[cell] = torch.where(step.active, stats.sample_prob, held)
        lengths = canvases.block_length.np[step.slots_np].astype(np.int64)
        counts = np.where(canvases.elastic[step.slots_np], lengths, step.row_counts)
        device, total = canvases.device, int(counts.sum())
        whole = canvases.elastic[step.slots_np] & (counts == step.row_counts)
        if whole.any():
            slots = async_tensor_h2d(step.slots_np[whole].astype(np.int64), device=device)
            self._computed_at.index_fill_(0, slots, 0)
        if (counts == step.row_counts).all():
            return stats, step
        begin = np.cumsum(counts) - counts
        request = np.repeat(np.arange(len(counts)), counts)
        local = np.arange(total) - begin[request]
        starts = np.append(begin, total).astype(np.int32)
        slot, column = async_tensor_h2d(
            np.stack((step.slots_np[request], local)).astype(np.int64), device=device
        )
        target = async_tensor_h2d(begin[step.request_np].astype(np.int64), device=device) + step.row_column
        fills = {"sample": -1, "sample_prob": _LEFT_OUT}
        spread = RowStats(
            **{
                name: values.new_full((total,), fills.get(name, 0)).index_copy_(0, target, values)
                for name, values in stats._asdict().items()
            }
        )
        active = step.active.new_zeros(total).index_copy_(0, target, step.active)
        return spread, replace(
            step,
            row_start=async_tensor_h2d(starts, device=device),
            row_counts=counts,
            row_slot=slot,
            whole=bool((counts == canvases.width).all()),
            active=active,
            _local_pos=column,
        )

    def _order(self, slots: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """Columns of blocks in the order of their worth, int64 ``[n, W]``.

        Args:
            slots: int64 ``[n]``.
            candidates: Rows of logits of each, likewise.
        """
        canvases, width = self.canvases, self.canvases.width
        columns = canvases.columns
        masked, unmasked_at = canvases.masked[slots], canvases.unmasked_at[slots]
        from_left = (canvases.rule.gpu[slots] == int(Rule.SEQUENTIAL))[:, None]
        score = torch.where(from_left, columns.to(torch.float32), -self._confidence[slots])
        score = score.masked_fill(~masked, torch.inf)
        rank = score.argsort(dim=1, stable=True).argsort(dim=1)
        fresh = ~masked & (unmasked_at >= 0) & (unmasked_at >= self._computed_at[slots])
        worth = torch.where(masked, 2 * width + rank, 3 * width + columns)
        worth = torch.where(fresh, width + columns, worth)
        worth = torch.where(masked & (rank < candidates[:, None]), rank, worth)
        worth = torch.where(columns < canvases.length[slots, None], worth, 4 * width + columns)
        return worth.argsort(dim=1)
