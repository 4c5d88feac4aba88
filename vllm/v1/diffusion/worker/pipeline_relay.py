# SPDX-License-Identifier: Apache-2.0
"""Canvases in a pipeline: the last stage denoises them, the first one embeds them.

After a step the runner hands the last stage's draft tokens to the stages before it, along
with the tokens that were emitted, and a request is not scheduled again before they have arrived.
A canvas travels as its request's draft tokens. Where it begins and ends follows from the tokens
that are known, since a request has no second window in flight.
"""

from __future__ import annotations

import numpy as np
import torch

from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.states import RequestState


class CanvasRelay:
    """Keeps one stage's canvases in step with the last stage's."""

    def __init__(self, canvases: CanvasStates, is_last_stage: bool) -> None:
        """Makes the relay.

        Args:
            canvases: The canvases of this stage.
            is_last_stage: Whether it is the stage that denoises.
        """
        self._canvases = canvases
        self._is_last_stage = is_last_stage
        self._requests: RequestState | None = None
        self._started: list[int] = []

    def start(self, slot: int) -> None:
        """A request takes a slot, its canvas being as yet what every stage makes of it.

        Args:
            slot: The slot.
        """
        self._started.append(slot)

    def remove(self, slot: int) -> None:
        """Gives a request's slot back, whose canvas may not have been seen.

        Args:
            slot: The slot.
        """
        if slot in self._started:
            self._started.remove(slot)

    def begin_step(self, input_batch: InputBatch, requests: RequestState) -> None:
        """Takes what the last stage left of the canvases; called before they are read.

        Args:
            input_batch: The step's batch.
            requests: The runner's request state.
        """
        self._requests = requests
        # Else nothing is handed over for chunks of a prompt and for requests of one token.
        ends = input_batch.num_computed_tokens_np + input_batch.num_scheduled_tokens
        input_batch.prefill_len_np = np.minimum(input_batch.prefill_len_np, ends)
        input_batch.max_seq_len_np = None
        started, self._started = self._started, []
        if self._is_last_stage:
            return
        canvases = self._canvases
        if started:
            self._write(async_tensor_h2d(started, dtype=torch.int64, device=canvases.device))
        slots = input_batch.idx_mapping[: input_batch.num_reqs]
        canvases.tokens[slots] = requests.draft_tokens[slots, : canvases.width]
        canvases.place(requests, slots)

    def end_step(self, slots: torch.Tensor) -> None:
        """Leaves the canvases where the runner hands them to the other stages.

        Args:
            slots: The step's requests, ``[R]``.
        """
        if self._is_last_stage and self._requests is not None:
            self._write(slots)

    def _write(self, slots: torch.Tensor) -> None:
        assert self._requests is not None
        self._requests.draft_tokens[slots, : self._canvases.width] = self._canvases.tokens[slots]
