# SPDX-License-Identifier: Apache-2.0
"""What a worker holds of each request slot, beside its parameters."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from vllm.v1.diffusion.request.decoding import Decoding, foreseen_steps


class SlotTables:
    """The canvases on the device; what they are, ``CanvasStates`` says."""

    def __init__(self, rows: int, width: int, device: torch.device) -> None:
        shape = (rows, width)
        self.tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        self.masked = torch.zeros(shape, dtype=torch.bool, device=device)
        self.unmasked_at = torch.full(shape, -1, dtype=torch.int32, device=device)
        self.confidence = torch.zeros(shape, dtype=torch.float32, device=device)
        self.step = torch.zeros(rows, dtype=torch.int32, device=device)
        self.start = torch.zeros(rows, dtype=torch.int64, device=device)
        self.length = torch.full((rows,), width, dtype=torch.int32, device=device)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(vars(self).values())


class SlotFlags:
    """What a step has to know of its requests on the host, bool ``[S]`` each.

    Attributes:
        unforeseen: The model decides when a block finishes.
        traced: The request wants to be told which step unmasked a position.
        graded: Somebody reads how sure the step was that unmasked it.
        late: End tokens are unmasked last.
    """

    def __init__(self, num_slots: int) -> None:
        self.unforeseen, self.traced, self.graded, self.late = np.zeros((4, num_slots), dtype=bool)

    def add(self, slot: int, decoding: Decoding) -> None:
        """Notes how a slot's request is denoised."""
        self.unforeseen[slot] = foreseen_steps(decoding, decoding.block_length) is None
        self.traced[slot] = decoding.trace
        self.graded[slot] = decoding.trace or decoding.vetoes or decoding.constrained
        self.late[slot] = bool(decoding.late_ids)
