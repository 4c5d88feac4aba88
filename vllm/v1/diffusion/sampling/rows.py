# SPDX-License-Identifier: Apache-2.0
"""What a mode decides about the rows of logits and canvas positions of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from typing_extensions import override

from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.canvas.step import DenoisingStep
from vllm.v1.diffusion.families import Family
from vllm.v1.diffusion.kernels.row_stats import RowStats
from vllm.v1.diffusion.sampling.step_outputs import StepOutputs
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.states import RequestState

if TYPE_CHECKING:
    from torch import nn

    from vllm.config import VllmConfig
    from vllm.v1.diffusion.request.decoding import Decoding
    from vllm.v1.diffusion.sampling.sampler import DenoisingSampler

AfterStep = Callable[[RowStats, DenoisingStep, torch.Tensor], torch.Tensor]
"""Changes canvases behind a step's unmasking; given which blocks are done, bool ``[R]``, and returns that."""


@dataclass(frozen=True)
class DenoisedBatch:
    """What is known of a batch of R requests when its step has unmasked.

    Attributes:
        input_batch: The step's batch.
        request_states: The runner's request state.
        window_end: Where the requests' windows ended, integers ``[R]``.
        known: Tokens known when the step began, likewise.
        start: Where the open blocks began then, likewise.
        block_end: Where they ended, likewise.
        finished: Whose blocks the step finished, bool ``[R]``.
    """

    input_batch: InputBatch
    request_states: RequestState
    window_end: torch.Tensor
    known: torch.Tensor
    start: torch.Tensor
    block_end: torch.Tensor
    finished: torch.Tensor

    @property
    def slots(self) -> torch.Tensor:
        """The requests' slots, ``[R]``."""
        return self.input_batch.idx_mapping[: self.input_batch.num_reqs]

    @property
    def computed_known(self) -> torch.Tensor:
        """End of the known tokens that the windows computed, integers ``[R]``."""
        return torch.minimum(self.window_end, self.known)


class RowLayout:
    """A block of a block-causal model: row i of the canvas's window predicts column i.

    The base of all layouts. The methods change the step in hand only, on the device, without
    waiting for it.
    """

    begins_open: ClassVar[bool] = False
    """Whether no block begins with known positions."""

    changes_logits: ClassVar[bool] = False
    """Whether :meth:`change_logits` does anything: it is given whole rows then."""

    rows_per_position: ClassVar[int] = 1
    """Rows of the head's output for one canvas position, at most."""

    after_steps: tuple[AfterStep, ...] = ()
    """What the mode does to canvases behind the unmasking and its corrections, before a block's
    early end is decided."""

    def __init__(self, canvases: CanvasStates, family: Family) -> None:
        """Makes it.

        Args:
            canvases: The canvases of this worker's requests.
            family: The model's.
        """
        self.canvases = canvases
        self.family = family

    # ---- asked by the model state ----------------------------------------------

    def bind(self, sampler: DenoisingSampler, model: nn.Module, vllm_config: VllmConfig) -> None:
        """Called once, when model and sampler are made.

        A mode whose steps are no unmasking puts parts of its own in the place of the sampler's
        ``statistics`` and ``unmasking``.

        Args:
            sampler: The sampler, changed.
            model: The model.
            vllm_config: The engine's configuration.
        """

    def add(self, slot: int, decoding: Decoding, prompt_len: int) -> None:
        """Takes a slot for a request.

        Args:
            slot: The slot.
            decoding: How the request is denoised.
            prompt_len: Position where its answer begins.
        """

    def remove(self, slot: int) -> None:
        """Gives a request's slot back."""

    def inputs(self, input_batch: InputBatch) -> dict[str, Any]:
        """What the model is given beside token ids and positions, which are in ``input_batch``."""
        return {}

    def begin_step(self, input_batch: InputBatch, request_states: RequestState) -> None:
        """Changes canvases before a step reads them.

        Args:
            input_batch: The step's batch.
            request_states: The runner's request state.
        """

    def windows_are_canvases(self, input_batch: InputBatch) -> bool:
        """Whether each request's window is its canvas, if the scheduler knew which block is open.

        So it is in most steps of a block: only its first one computes the block before, too.
        """
        width = self.canvases.width
        rows = input_batch.num_draft_tokens_per_req
        lengths = input_batch.num_scheduled_tokens
        return rows is not None and bool((rows == width).all() and (lengths == width).all())

    def point_logits(self, input_batch: InputBatch, request_states: RequestState, unsure: bool) -> None:
        """Chooses the rows of the model's output that logits are made of.

        Upstream's are each window's last ones, as many as the scheduler asked for.

        Args:
            input_batch: The step's batch; ``logits_indices`` is changed.
            request_states: The runner's request state.
            unsure: Whether a window was planned before it was known which of its blocks is open.
        """
        rows, slot = input_batch.logits_indices, input_batch.expanded_idx_mapping
        if unsure and len(rows):
            # The window may reach beyond the open block.
            wanted = self.canvases.start[slot] + input_batch.expanded_local_pos
            beyond = (input_batch.positions[rows] - wanted).clamp_(min=0)
            input_batch.logits_indices = rows - beyond.to(rows.dtype)

    def place(self, input_batch: InputBatch) -> bool:
        """Changes which positions a step's rows have, before anything reads them.

        Args:
            input_batch: The step's batch; ``positions`` is changed.

        Returns:
            Whether it changed any.
        """
        return False

    def row_requests(self, input_batch: InputBatch) -> np.ndarray:
        """Which request of the batch each row of the head's output belongs to, int64, on the host."""
        return np.repeat(np.arange(input_batch.num_reqs), row_counts(input_batch))

    # ---- asked by the sampler --------------------------------------------------

    def folded(self, logits: torch.Tensor, step: DenoisingStep) -> torch.Tensor:
        """The N rows of a step, of which a mode may have computed some twice.

        Args:
            logits: The head's output, ``[N, V]`` and more rows behind, changed; of a rank's share of the
                vocabulary alike.
            step: The step.
        """
        return logits

    def spread(self, stats: RowStats, step: DenoisingStep) -> tuple[RowStats, DenoisingStep]:
        """A step's statistics, and the step, with a row for every column of each canvas.

        Args:
            stats: Of the rows of logits.
            step: The step, of the same rows.
        """
        return stats, step

    def change_logits(self, logits: torch.Tensor, step: DenoisingStep) -> None:
        """Changes a step's logits, in place.

        Args:
            logits: ``[N, V]``.
            step: The step.
        """

    def outputs(self, outputs: StepOutputs, step: DenoisingStep) -> StepOutputs:
        """Changes what a step hands on, of a mode whose steps emit other tokens than canvases hold.

        Args:
            outputs: The tokens of all canvases that denoised, from their first new position on.
            step: The step.
        """
        return outputs

    def may_miss_block(self, input_batch: InputBatch) -> bool:
        """Whether rows may belong to a block that their window does not reach, all steps being foreseen."""
        return False

    def covers(
        self, request_states: RequestState, slots: torch.Tensor, window_end: torch.Tensor
    ) -> torch.Tensor:
        """Whether a step's windows cover the open blocks, bool ``[R]``; else the step leaves them.

        Args:
            request_states: The runner's request state.
            slots: The step's requests, int64 ``[R]``.
            window_end: Where their windows end, ``[R]``.
        """
        return self.canvases.start[slots] + self.canvases.length[slots] <= window_end

    def active(self, input_batch: InputBatch, slots: torch.Tensor, whole: bool) -> torch.Tensor:
        """Rows that the step may unmask, bool ``[N]``: those of masked positions.

        A mode that computes some rows of a block only leaves the others out.

        Args:
            input_batch: The step's batch.
            slots: The R requests that denoise.
            whole: Whether each has a row for every column of the canvas.
        """
        if whole:
            return self.canvases.masked.index_select(0, slots).view(-1)
        return self.canvases.masked[input_batch.expanded_idx_mapping, input_batch.expanded_local_pos]

    def first_only(self, step: DenoisingStep) -> torch.Tensor | None:
        """Requests of which the step unmasks the block's first position and no other, bool ``[R]``.

        None stands for none of them, whatever the step.
        """
        return None

    def rewritable(self, slots: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """Column from which unmasked positions have a row of their own, int64 ``[R]``.

        Args:
            slots: The requests' slots.
            first: Column of each request's first position that has not been emitted.
        """
        return first

    def emit(self, batch: DenoisedBatch) -> torch.Tensor:
        """How many tokens each request emits, integers ``[R]``: those of finished blocks.

        A mode whose steps emit other runs of tokens says so here, and turns their canvases. The
        canvases of finished blocks have turned.
        """
        return torch.where(batch.finished, batch.block_end - batch.known, 0)

    def computed(self, batch: DenoisedBatch) -> torch.Tensor:
        """Positions of each request that are final after the step, integers ``[R]``.

        ``BlockGrid.computed``, on the device: the two must agree.
        """
        return self.canvases.floor(batch.computed_known, batch.slots, batch.input_batch.idx_mapping_np)


class CausalContextRows(RowLayout):
    """Rows behind known tokens that are computed causally: each of these is final at once."""

    begins_open: ClassVar[bool] = True

    @override
    def computed(self, batch: DenoisedBatch) -> torch.Tensor:
        return batch.computed_known


def row_counts(input_batch: InputBatch) -> np.ndarray:
    """Rows of logits of each request of a batch, on the host."""
    return np.diff(input_batch.cu_num_logits_np[: input_batch.num_reqs + 1])
