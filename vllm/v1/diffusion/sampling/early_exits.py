# SPDX-License-Identifier: Apache-2.0
"""What ends a block before its rule or policy does."""

from __future__ import annotations

import torch

from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.canvas.step import DenoisingStep
from vllm.v1.diffusion.kernels.row_stats import RowStats
from vllm.v1.diffusion.request.decoding import Decoding

_NEVER = 2.0
"""A probability that no token reaches."""


class EarlyExits:
    """The early exits that the requests of a step ask for; no work where none does."""

    def __init__(self, canvases: CanvasStates) -> None:
        """Makes it.

        Args:
            canvases: The canvases of this worker's requests.
        """
        self.canvases = canvases
        self._columns = torch.arange(canvases.width, device=canvases.device)

    def capped(self, step: DenoisingStep) -> torch.Tensor | None:
        """Which requests make the last step they allow for a block, bool ``[R]``; None for none."""
        if not any(limits := [d.max_steps or 0 for d in self._decodings(step)]):
            return None
        limit = async_tensor_h2d(limits, dtype=torch.int32, device=step.slots.device)
        return (limit > 0) & (self.canvases.step[step.slots] + 1 >= limit)

    def certain(self, stats: RowStats, step: DenoisingStep) -> torch.Tensor | None:
        """Which requests are sure of all that is masked, bool ``[R]``; None where none asks."""
        given = [_NEVER if d.exit_threshold is None else d.exit_threshold for d in self._decodings(step)]
        if min(given, default=_NEVER) == _NEVER:
            return None
        threshold = async_tensor_h2d(given, dtype=torch.float32, device=step.slots.device)
        masked = self.canvases.masked[step.slots]
        rows = (step.row_start[:-1, None] + self._columns).clamp(max=len(stats.sample) - 1)
        # A row that holds no number is not sure of anything.
        confidence = stats.sample_prob[rows].nan_to_num(nan=-1.0)
        return confidence.masked_fill(~masked, 1.0).amin(dim=1) >= threshold

    def ended(self, step: DenoisingStep, first: torch.Tensor) -> torch.Tensor | None:
        """Which canvases hold a stop token and no mask before it, bool ``[R]``; None where none asks.

        Args:
            step: The step, whose choice is on the canvases.
            first: Column of each request's first position that has not been emitted,
                int64 ``[R]``.
        """
        wanted = [d.stop_ids for d in self._decodings(step)]
        longest = max(map(len, wanted), default=0)
        if longest == 0:
            return None
        padded = [[*ids, *[-1] * (longest - len(ids))] for ids in wanted]
        ids = async_tensor_h2d(padded, dtype=torch.int64, device=step.slots.device)
        tokens, masked = self.canvases.tokens[step.slots], self.canvases.masked[step.slots]
        open_before = masked.cumsum(dim=1) > 0
        stops = (tokens[..., None] == ids[:, None]).any(-1) & (self._columns >= first[:, None])
        return (stops & ~open_before & (self._columns < self.canvases.length[step.slots, None])).any(dim=1)

    def _decodings(self, step: DenoisingStep) -> list[Decoding]:
        """How the step's requests are denoised; nothing where none of a worker's may exit early."""
        if not self.canvases.exiting:
            return []
        return [self.canvases.decoding[slot] for slot in step.slots_np.tolist()]
