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
        self.tokens = torch.empty(shape, dtype=torch.int64, device=device)
        self.masked = torch.empty(shape, dtype=torch.bool, device=device)
        self.unmasked_at = torch.empty(shape, dtype=torch.int32, device=device)
        self.confidence = torch.empty(shape, dtype=torch.float32, device=device)
        self.entropy = torch.empty(shape, dtype=torch.float32, device=device)
        self.step = torch.empty(rows, dtype=torch.int32, device=device)
        self.start = torch.empty(rows, dtype=torch.int64, device=device)
        self.length = torch.empty(rows, dtype=torch.int32, device=device)
        self.reset(torch.arange(rows, device=device))

    def reset(self, slots: torch.Tensor) -> None:
        """Makes slots as they are before a request takes them.

        Args:
            slots: int64 ``[R]``, distinct.
        """
        for table in (self.tokens, self.masked, self.confidence, self.entropy, self.step, self.start):
            table.index_fill_(0, slots, 0)
        self.unmasked_at.index_fill_(0, slots, -1)
        self.length.index_fill_(0, slots, self.tokens.shape[1])

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(vars(self).values())


class SlotFlags:
    """What a step has to know of its requests on the host, bool ``[S]`` where nothing else is said.

    Attributes:
        unforeseen: The model decides when a block finishes.
        traced: The request asks which step unmasked a position.
        graded: Somebody reads how sure the step was that unmasked it.
        late: End tokens are unmasked last.
        scored: What is written is given: targets.
        blanked: What is written is the mask token, once it was scored.
        watched: The request asks how each step leaves its block.
        candidates: How many tokens it wants of each step at each open position; int64 ``[S]``.
    """

    def __init__(self, num_slots: int) -> None:
        flags = np.zeros((7, num_slots), dtype=bool)
        self.unforeseen, self.traced, self.graded, self.late = flags[:4]
        self.scored, self.blanked, self.watched = flags[4:]
        self.candidates = np.zeros(num_slots, dtype=np.int64)

    def add(self, slot: int, decoding: Decoding) -> None:
        """Notes how a slot's request is denoised."""
        self.unforeseen[slot] = foreseen_steps(decoding, decoding.block_length) is None
        self.traced[slot] = decoding.trace
        self.watched[slot] = decoding.watched
        self.candidates[slot] = decoding.candidates
        self.graded[slot] = decoding.trace or decoding.watched or decoding.vetoes or decoding.constrained
        self.late[slot] = bool(decoding.late_ids)
        self.scored[slot] = decoding.targets is not None
        self.blanked[slot] = decoding.hidden is not None

    def remove(self, slot: int) -> None:
        """Forgets what was noted."""
        for flag in vars(self).values():
            flag[slot] = False
