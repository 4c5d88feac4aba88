# SPDX-License-Identifier: Apache-2.0
"""Runs batches of requests that verify their drafts, with the draws of the golden cases.

Those fix every uniform number to one, which is in the request's seed here, in thousandths. What is drawn from
a residual is its most probable token.
"""

from __future__ import annotations

import torch

from tests.engine import run_batches
from vllm.v1.diffusion.policies import CanvasView
from vllm.v1.diffusion.worker.speculating.verification import Verification


def uniform(self: Verification, view: CanvasView) -> torch.Tensor:
    return (view.seed[:, None].double() / 1000).expand(view.masked.shape)


def draw(
    self: Verification,
    logits: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
    step: torch.Tensor,
) -> torch.Tensor:
    return logits.argmax(dim=1)


if __name__ == "__main__":
    Verification.uniform = uniform  # type: ignore[method-assign]
    Verification.draw = draw  # type: ignore[method-assign]
    run_batches.main()
