# SPDX-License-Identifier: Apache-2.0
"""``unmask``: writes one denoising step's tokens into the canvases."""

import torch
from torch import Tensor

from vllm.v1.diffusion.kernels import library as _library  # noqa: F401  loads the compiled operators


def unmask(
    token: Tensor,
    confidence: Tensor,
    entropy: Tensor,
    picked: Tensor | None,
    row_start: Tensor,
    slots: Tensor,
    canvas: Tensor,
    masked: Tensor,
    unmasked_at: Tensor,
    step: Tensor,
    rule: Tensor,
    steps: Tensor,
    block_length: Tensor,
    threshold: Tensor,
) -> Tensor:
    """Unmasks one denoising step's positions in the canvases of R requests, in place.

    Row ``row_start[r] + p`` belongs to position ``p`` of request r's canvas. Among its masked
    positions the request's rule (:class:`~vllm.v1.diffusion.kernels.rules.Rule`) picks some; each gets
    its row's token, is no longer masked, and has the current step noted. Then the step advances. A
    request without a masked position is left as it is. Rules may differ within a call.

    N rows, R requests, S slots, W positions per canvas (at most 4096).

    Args:
        token: ``[N]`` int64, the token proposed for each row.
        confidence: ``[N]`` float32.
        entropy: ``[N]`` float32, in nats; used by ``ENTROPY_BOUNDED``.
        picked: ``[N]`` bool, the choice of ``GIVEN``; None if no request uses that rule.
        row_start: ``[R + 1]`` int32, first row of each request, ascending.
        slots: ``[R]`` int64, distinct; row of the state tensors for each request.
        canvas: ``[S, W]`` int64, written.
        masked: ``[S, W]`` bool, written. Positions beyond the request's rows are neither read nor
            counted.
        unmasked_at: ``[S, W]`` int32, written: the step at which each position was unmasked.
        step: ``[S]`` int32, written.
        rule: ``[S]`` int32.
        steps: ``[S]`` int32, denoising steps per block (T).
        block_length: ``[S]`` int32 (B).
        threshold: ``[S]`` float32, the rule's parameter.

    Returns:
        ``[R]`` int32: masked positions left among each request's rows.

    Raises:
        RuntimeError: for a wrong shape, dtype or device; on the CPU also for a slot, rule or
            ``row_start`` out of range. On CUDA, where looking would mean waiting for the device, such
            a request is left alone and its result is -1.
    """
    remaining: Tensor = torch.ops.vllm_diffusion.unmask(
        token,
        confidence,
        entropy,
        picked,
        row_start,
        slots,
        canvas,
        masked,
        unmasked_at,
        step,
        rule,
        steps,
        block_length,
        threshold,
    )
    return remaining


@torch.library.register_fake("vllm_diffusion::unmask")  # type: ignore[untyped-decorator]
def _unmask_fake(
    token: Tensor,
    confidence: Tensor,
    entropy: Tensor,
    picked: Tensor | None,
    row_start: Tensor,
    slots: Tensor,
    canvas: Tensor,
    masked: Tensor,
    unmasked_at: Tensor,
    step: Tensor,
    rule: Tensor,
    steps: Tensor,
    block_length: Tensor,
    threshold: Tensor,
) -> Tensor:
    return token.new_empty(slots.shape[0], dtype=torch.int32)
