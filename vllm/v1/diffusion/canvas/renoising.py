# SPDX-License-Identifier: Apache-2.0
"""Canvases whose open positions hold random tokens, not masks, and what is remembered beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas.noise import MaskNoise
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.policies.adaptive.renoise import Renoise
from vllm.v1.diffusion.policies.noise import random_ids
from vllm.v1.diffusion.request.decoding import Decoding
from vllm.v1.worker.gpu.buffer_utils import UvaBackedTensor


class UniformNoise(MaskNoise):
    """Random ids of the whole vocabulary, drawn by request, position and step.

    Attributes:
        seeds: The requests' seeds, upstream's, int64 ``[S]``.
        vocab_size: Ids that are drawn from.
    """

    seeds: Any
    vocab_size: int

    def __init__(self, mask_token_id: int) -> None:
        super().__init__(mask_token_id)
        self._holes: dict[int, tuple[int, torch.Tensor]] = {}

    def add(self, slot: int, decoding: Decoding, prompt_len: int) -> None:
        """Notes what a request's canvases begin with, if it says so."""
        self.remove(slot)
        if decoding.holes is not None:
            ids = async_tensor_h2d(list(decoding.holes), dtype=torch.int64, device=self.seeds.gpu.device)
            self._holes[slot] = prompt_len, ids

    def remove(self, slot: int) -> None:
        """Gives a slot back."""
        self._holes.pop(slot, None)

    def draw(self, slots: torch.Tensor, positions: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        """Random ids of canvas positions.

        Args:
            slots: int64 ``[R]``.
            positions: int64 ``[R, W]``.
            number: Of the draw within the block: 0 for what it begins with, then 1 for the noise of
                its first step; int ``[R]``.

        Returns:
            int64 ``[R, W]``.
        """
        return random_ids(self.seeds.gpu[slots][:, None], positions, number[:, None], self.vocab_size)

    def renew(
        self, tokens: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor, start: torch.Tensor
    ) -> None:
        """Fills new canvases; see :class:`MaskNoise`."""
        positions = start[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        tokens[rows] = self.ahead(slots, positions)

    def ahead(self, slots: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """What new canvases hold at some positions; no step reads what lies behind them."""
        if positions.dim() == 1:
            return torch.zeros_like(positions)
        ids = self.draw(slots, positions, torch.zeros_like(slots))
        for slot, (begin, own) in self._holes.items():
            # Only the rows of that slot: which they are, the device knows.
            offset = positions - begin
            inside = (slots == slot)[:, None] & (offset >= 0) & (offset < len(own))
            ids = torch.where(inside, own[offset.clamp(0, len(own) - 1)], ids)
        return ids

    def again(self, tokens: torch.Tensor) -> torch.Tensor:
        """What stands where a correction opens a position again: the token that it held."""
        return tokens


class RenoisingStates:
    """What is remembered between the steps of a block, for each of S request slots.

    Nothing of it counts in a block's first step.

    Attributes:
        best: Most probable tokens of the step before, int64 ``[S, W]``.
        same: Steps for which they have been the same, int32 ``[S]``.
        stopped: Whether the step before ended the block, which a correction opened again, bool ``[S]``.
        predicted: What the step before predicts of each position, an embedding, ``[S, W, hidden]``.
        values: The numbers of each request's schedule and stop, by name, float32 ``[S]`` each.
        conditions: Requests that take a second step, on the host, bool ``[S]``.
    """

    def __init__(self, canvases: CanvasStates, hidden_size: int, dtype: torch.dtype) -> None:
        """Makes the states.

        Args:
            canvases: The canvases of this worker's requests.
            hidden_size: Width of the embeddings.
            dtype: Their type.
        """
        slots, width = canvases.tokens.shape
        device = canvases.device
        self.best = torch.zeros(slots, width, dtype=torch.int64, device=device)
        self.same = torch.zeros(slots, dtype=torch.int32, device=device)
        self.stopped = torch.zeros(slots, dtype=torch.bool, device=device)
        self.predicted = torch.zeros(slots, width, hidden_size, dtype=dtype, device=device)
        self.values = {name: UvaBackedTensor(slots, dtype=torch.float32) for name in Renoise.numbers}
        self.conditions = np.ones(slots, dtype=bool)
        for slot in range(slots):
            self.remove(slot)
        self.apply_added()

    def add(self, slot: int, decoding: Decoding) -> None:
        """Takes a slot for a request; effective with :meth:`apply_added`."""
        for name, value in self.values.items():
            value.np[slot] = decoding.values[name]
        self.conditions[slot] = decoding.max_steps != 1

    def remove(self, slot: int) -> None:
        """Gives a slot back: warm-up batches use the published numbers."""
        for name, number in Renoise.numbers.items():
            self.values[name].np[slot] = number.default or 0.0
        self.conditions[slot] = True

    def apply_added(self) -> None:
        """Makes what was added visible to the device."""
        for value in self.values.values():
            value.copy_to_uva()
