"""Turns problems into denoising examples: what is hidden, who sees whom, where loss counts.

Block diffusion (SDAR; BD3-LM, arXiv 2503.09573): one row holds clean tokens and, after them, a
noisy copy of the blocks that hold the answer. A noisy block sees itself and the clean blocks before
it, so every block of the answer is trained in one pass. Full diffusion (LLaDA, arXiv 2502.09992):
prompt and a canvas of random length, all visible to all.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .tasks import Batch, Sampler
from .vocab import MASK

WINDOW = 32
"""Positions of the noisy copy: whole blocks of 4, 8, 16 or 32 that cover the answer and its end."""
LENGTH = 48
"""Positions that hold any prompt with its answer and end."""
FULLY_MASKED = 0.3
"""Share of blocks hidden entirely, as decoding finds them at first."""
COMMON_CANVAS = 8
MAX_CANVAS = 64
"""Canvases are multiples of ``COMMON_CANVAS`` more often than not; shorter ones are likelier."""


@dataclass(frozen=True)
class Example:
    """One denoising batch of ``n`` rows, the last ``m`` tokens of each having targets.

    Attributes:
        tokens: ``[n, length]`` int64 with hidden tokens replaced by ``MASK``.
        positions: ``[n, length]`` int64.
        visible: ``[n, length, length]`` bool.
        targets: ``[n, m]`` int64.
        weight: ``[n, m]`` float32, 1 where loss counts.
    """

    tokens: Tensor
    positions: Tensor
    visible: Tensor
    targets: Tensor
    weight: Tensor


def mask_rates(sampler: Sampler, *shape: int) -> Tensor:
    """Draws the share of tokens to hide: 1 for some, uniform for the rest."""
    rates = sampler.uniform(*shape)
    return torch.where(sampler.uniform(*shape) < FULLY_MASKED, 1.0, rates)


def block_diffusion(
    batch: Batch, sampler: Sampler, block: int, window: int = WINDOW, length: int = LENGTH
) -> Example:
    """Makes a block-diffusion example.

    Args:
        batch: problems; the columns reach ``window`` beyond the start of any answer's last block.
        sampler: where random numbers come from.
        block: tokens of a block.
        window: positions of the noisy copy, whole blocks. An answer of more blocks has a random run of them.
        length: positions that hold any prompt with its answer and end.
    """
    n, device = len(batch.tokens), batch.tokens.device
    clean = torch.arange(length - block, device=device).expand(n, -1)
    start = batch.prompt_len // block * block
    end = (batch.prompt_len + batch.answer_len) // block * block + block
    if window != WINDOW:
        spare = (end - start - window).clamp(min=0) // block
        start = start + (sampler.uniform(n) * (spare + 1)).long() * block
    noisy = start[:, None] + torch.arange(window, device=device)
    targets = batch.tokens.gather(1, noisy)
    answer = (noisy >= batch.prompt_len[:, None]) & (noisy < end[:, None])
    rate = mask_rates(sampler, n, window // block).repeat_interleave(block, 1)
    hidden = answer & (sampler.uniform(n, window) < rate)
    positions = torch.cat([clean, noisy], 1)
    blocks = positions // block
    copy = torch.arange(positions.shape[1], device=device) >= clean.shape[1]
    before = blocks[:, :, None] > blocks[:, None, :]
    same = blocks[:, :, None] == blocks[:, None, :]
    own = same & (copy[:, None] == copy)
    visible = own | (before & ~copy)
    tokens = torch.cat([batch.tokens[:, : clean.shape[1]], targets.masked_fill(hidden, MASK)], 1)
    return Example(tokens, positions, visible, targets, (hidden & batch.trainable[:, None]).float())


def full_diffusion(batch: Batch, sampler: Sampler) -> Example:
    """Makes a full-diffusion example; the columns of ``batch`` bound prompt and canvas together.

    Half of the rows are hidden evenly; the other half as semi-autoregressive decoding sees them:
    the blocks before the current one known, the blocks after it hidden.
    """
    n, length = batch.tokens.shape
    device = batch.tokens.device
    canvas = 1 + (sampler.uniform(n).pow(1.5) * MAX_CANVAS).long()
    rounded = (canvas + COMMON_CANVAS - 1) // COMMON_CANVAS * COMMON_CANVAS
    canvas = torch.where(sampler.uniform(n) < 0.3, canvas, rounded)
    canvas = torch.maximum(canvas, batch.answer_len + (sampler.uniform(n) < 0.9))
    end = (batch.prompt_len + canvas).clamp(max=length)
    positions = torch.arange(length, device=device).expand(n, -1)
    within = positions < end[:, None]
    answer = within & (positions >= batch.prompt_len[:, None])
    hidden = sampler.uniform(n, length) < mask_rates(sampler, n, 1)
    block = 4 << sampler.integers(0, 4, n, 1)
    index = (positions - batch.prompt_len[:, None]) // block
    last = (end - batch.prompt_len - 1)[:, None] // block
    current = (sampler.uniform(n, 1) * (last + 1)).long()
    ordered = (index > current) | ((index == current) & hidden)
    hidden = answer & torch.where(sampler.uniform(n, 1) < 0.5, ordered, hidden)
    tokens = batch.tokens.masked_fill(hidden, MASK)
    visible = within[:, None, :].expand(n, length, length)
    weight = (hidden & batch.trainable[:, None]).float()
    return Example(tokens, positions, visible, batch.tokens, weight)
