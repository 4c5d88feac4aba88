# SPDX-License-Identifier: Apache-2.0
"""``row_stats``: a token, probabilities and entropy of each row of logits, in one pass."""

from typing import NamedTuple

import torch
from torch import Tensor

from vllm.v1.diffusion.kernels import library as _library  # noqa: F401  loads the compiled operators


class RowStats(NamedTuple):
    """What :func:`row_stats` returns: one entry per row, each of shape ``[N]``."""

    sample: Tensor
    """Drawn id, int64; where the temperature is 0 that of the highest logit."""
    sample_prob: Tensor
    """Probability of ``sample``, float32."""
    top1: Tensor
    """Highest probability, float32."""
    top2: Tensor
    """Second highest probability, float32; equal to ``top1`` in a tie."""
    entropy: Tensor
    """Entropy in nats, float32."""
    lse: Tensor
    """log(sum(exp(logits / stat_temperature))), float32.

    The pass has it anyway. No policy reads it: it is what turns a logit into a likelihood, and what
    parts of a vocabulary on several devices are merged by.
    """


def row_stats(
    logits: Tensor,
    temperature: Tensor,
    stat_temperature: Tensor,
    seed: Tensor,
    offset: Tensor,
    active: Tensor | None = None,
    banned: int = -1,
) -> RowStats:
    """Token, probabilities, entropy and log-sum-exp of each row, in one pass.

    Nothing of the size of ``logits`` is allocated. All tensors are on one device, CPU or CUDA.

    The sample is drawn from ``softmax(logits / temperature)`` in two stages, each an argmax of float64
    scores with Gumbel noise: a group k of 2048 neighbouring ids, by the log-sum-exp of its scaled
    logits, then an id v of that group. The noise is word ``v % 4`` of the Philox4x32-10 block with key
    ``seed`` and counter ``(offset, v // 4, 0)``, for a group ``(offset, k // 4, 1)``. The sample depends
    on the row's seed, offset and logits only: not on its place in the batch, the number of threads, the
    instruction set or the device.

    Args:
        logits: ``[N, V]``, float32, float16 or bfloat16. The ids of a row are contiguous; rows may
            be further apart than ``V``. ``-inf`` marks filtered ids.
        temperature: ``[N]`` float32. 0 takes the id of the highest logit.
        stat_temperature: ``[N]`` float32, positive. Every probability, the entropy and the
            log-sum-exp are those of ``softmax(logits / stat_temperature)``.
        seed: ``[N]`` int64.
        offset: ``[N]`` int64. Must change from draw to draw of one request.
        active: ``[N]`` bool, or None for all. An inactive row is not read: its ``sample`` is -1, all
            else 0.
        banned: an id (the mask token) that is never ``sample`` and never counts for ``top1`` and
            ``top2``, but stays in the normaliser and the entropy, as in the families' published
            samplers; -1 for none.

    Returns:
        The statistics. Ties go to the lowest id. ``0 log 0`` is 0. A row with NaN or ``+inf`` in
        its logits, or whose ``stat_temperature`` is not a positive finite number, gets the lowest id
        that is not banned, probabilities and entropy 0, and NaN for ``lse``. A row of nothing but
        ``-inf`` gets the same with ``lse`` ``-inf``.

    Raises:
        RuntimeError: for a wrong shape, dtype, device or stride, or ``banned`` outside ``-1 ... V-1``.
    """
    return RowStats(
        *torch.ops.vllm_diffusion.row_stats(
            logits, temperature, stat_temperature, seed, offset, active, banned
        )
    )


@torch.library.register_fake("vllm_diffusion::row_stats")  # type: ignore[untyped-decorator]
def _row_stats_fake(
    logits: Tensor,
    temperature: Tensor,
    stat_temperature: Tensor,
    seed: Tensor,
    offset: Tensor,
    active: Tensor | None,
    banned: int,
) -> tuple[Tensor, ...]:
    rows = logits.shape[0]
    numbers = [logits.new_empty(rows, dtype=torch.float32) for _ in range(5)]
    return (logits.new_empty(rows, dtype=torch.int64), *numbers)
