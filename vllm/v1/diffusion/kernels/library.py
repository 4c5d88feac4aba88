# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM-Diffusion project
"""The diffusion kernels: ``torch.ops.vllm_diffusion``, with types and documentation.

Importing this module loads ``vllm/_diffusion_C.abi3.so``. The sources are under ``csrc/``; the same
operators in plain PyTorch are in ``reference.py``, how far the two may differ in ``tolerances.py``.
"""

import importlib.util
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["RowStats", "row_stats", "unmask"]


def _load_library() -> None:
    """Loads the compiled operators; raises ImportError with a plain sentence if that fails."""
    spec = importlib.util.find_spec("vllm._diffusion_C")
    if spec is None or spec.origin is None:
        raise ImportError(
            "The diffusion kernels (vllm/_diffusion_C.abi3.so) are not installed. They are built by "
            "`pip install .` or `pip install -e .` in the vLLM-Diffusion source folder."
        )
    try:
        torch.ops.load_library(spec.origin)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ImportError(
            f"The diffusion kernels ({spec.origin}) were built for another torch or another "
            f"platform and cannot be loaded with torch {torch.__version__}: {error.__cause__ or error}"
        ) from error


_load_library()


class RowStats(NamedTuple):
    """What :func:`row_stats` returns: one entry a row, each of shape ``[N]``."""

    argmax: Tensor
    """Highest logit's id, int64."""
    sample: Tensor
    """Drawn id, int64; equal to ``argmax`` where the temperature is 0."""
    sample_prob: Tensor
    """Probability of ``sample``, float32."""
    top1: Tensor
    """Highest probability, float32."""
    top2: Tensor
    """Second highest probability, float32; equal to ``top1`` in a tie."""
    entropy: Tensor
    """Entropy in nats, float32."""
    lse: Tensor
    """log(sum(exp(logits / stat_temperature))), float32."""


def row_stats(
    logits: Tensor,
    temperature: Tensor,
    stat_temperature: Tensor,
    seed: Tensor,
    offset: Tensor,
    active: Tensor | None = None,
    banned: int = -1,
) -> RowStats:
    """Argmax, Gumbel sample, probabilities, entropy and log-sum-exp of each row, in one pass.

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
        temperature: ``[N]`` float32. 0 takes the argmax as the sample.
        stat_temperature: ``[N]`` float32, positive. Every probability, the entropy and the
            log-sum-exp are those of ``softmax(logits / stat_temperature)``.
        seed: ``[N]`` int64.
        offset: ``[N]`` int64. Must change from draw to draw of one request.
        active: ``[N]`` bool, or None for all. An inactive row is not read: its ``argmax`` and
            ``sample`` are -1, all else 0.
        banned: an id (the mask token) that is never ``argmax`` or ``sample`` and never counts for
            ``top1`` and ``top2``, but stays in the normaliser and the entropy, as in the families'
            published samplers; -1 for none.

    Returns:
        The statistics. Ties go to the lowest id. ``0 log 0`` is 0. A row with NaN or ``+inf`` among
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


def unmask(
    token: Tensor,
    confidence: Tensor,
    entropy: Tensor,
    picked: Tensor | None,
    row_start: Tensor,
    slots: Tensor,
    canvas: Tensor,
    masked: Tensor,
    settled_at: Tensor,
    step: Tensor,
    rule: Tensor,
    steps: Tensor,
    block_length: Tensor,
    threshold: Tensor,
) -> Tensor:
    """Settles one denoising step's positions in the canvases of R requests, in place.

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
        settled_at: ``[S, W]`` int32, written: the step at which each position was settled.
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
        settled_at,
        step,
        rule,
        steps,
        block_length,
        threshold,
    )
    return remaining


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
    ids = [logits.new_empty(rows, dtype=torch.int64) for _ in range(2)]
    numbers = [logits.new_empty(rows, dtype=torch.float32) for _ in range(5)]
    return (*ids, *numbers)


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
    settled_at: Tensor,
    step: Tensor,
    rule: Tensor,
    steps: Tensor,
    block_length: Tensor,
    threshold: Tensor,
) -> Tensor:
    return token.new_empty(slots.shape[0], dtype=torch.int32)
