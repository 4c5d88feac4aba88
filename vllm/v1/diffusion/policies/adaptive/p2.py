# SPDX-License-Identifier: Apache-2.0
"""``p2``: a share of the answer that falls with the steps stays masked, unmasked positions included."""

import torch

from vllm.v1.diffusion.policies.base import CanvasView, PositionStats, Rewrite, UnmaskingPolicy


class P2(UnmaskingPolicy):
    """Masks the least probable positions of the whole block, and unmasks the others (Open-dLLM's ``p2``).

    Step i of n leaves the share ``1 - (i + 1) / n`` masked: the positions at which the model is least
    sure of what it would write now, whatever stands there. An unmasked position among them is masked
    again; one that is not keeps its token.
    """

    uses_steps = True

    def select(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        """Chooses masked positions that are not among the least probable, bool ``[requests, width]``."""
        return canvas.masked & ~_lowest(stats, canvas)

    def rewrite(self, stats: PositionStats, canvas: CanvasView) -> Rewrite:
        """Masks unmasked positions again that are; writes none."""
        return Rewrite(torch.zeros_like(canvas.masked), remask=canvas.unmasked & _lowest(stats, canvas))


def _lowest(stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
    """The positions that the step leaves masked."""
    own = canvas.masked | canvas.unmasked
    # The published code multiplies in float32: a unit in the last place decides.
    left = 1 - (canvas.step.double() + 1) / canvas.steps.double()
    count = (own.sum(dim=1).float() * left.float()).to(torch.int64)
    order = stats.confidence.masked_fill(~own, torch.inf).argsort(dim=1, stable=True)
    return order.argsort(dim=1) < count[:, None]
