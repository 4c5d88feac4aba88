"""Reference decoding of both families in plain PyTorch, for a batch of prompts, without a cache.

Each row goes its own way: its current block is the first with a hidden token, and every forward
unmasks some of that block. SDAR's blocks are aligned to absolute positions and attention is
block-causal, so what lies behind the current block has no influence; LLaDA's blocks start where the
prompt ends, and the whole canvas is visible. Token choice is greedy; a token's confidence is its
probability.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .network import Network
from .vocab import EOS, MASK, decode, encode


@dataclass(frozen=True)
class Decoding:
    """How a block is unmasked.

    Attributes:
        strategy: ``static`` takes the most confident tokens of each step's quota, ``dynamic``
            all above ``threshold`` if they fill the quota, ``sequential`` the leftmost.
        steps: denoising steps of a whole block; their quotas add up to the block.
        threshold: confidence above which ``dynamic`` unmasks a token.
        block: tokens of a block; 0 for the network's own.
    """

    strategy: str = "dynamic"
    steps: int = 16
    threshold: float = 0.9
    block: int = 0

    def quota(self, step: Tensor, block: int) -> Tensor:
        """Tokens to unmask at each ``step`` of a block; the earliest steps take the remainder."""
        return block // self.steps + (step < block % self.steps).long()

    def select(self, confidence: Tensor, hidden: Tensor, quota: Tensor) -> Tensor:
        """Chooses what to unmask.

        Args:
            confidence: ``[n, length]``, probability of each position's token.
            hidden: ``[n, length]`` bool, hidden positions of the current block.
            quota: ``[n]``, tokens due in this step.

        Returns:
            ``[n, length]`` bool.
        """
        order = torch.arange(hidden.shape[1], 0, -1, device=hidden.device, dtype=confidence.dtype)
        score = order.expand_as(confidence) if self.strategy == "sequential" else confidence
        score = score.masked_fill(~hidden, -torch.inf)
        rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        chosen = hidden & (rank < quota[:, None])
        if self.strategy == "dynamic":
            sure = hidden & (confidence > self.threshold)
            enough = sure.sum(1) >= torch.minimum(quota, hidden.sum(1))
            chosen = torch.where(enough[:, None], sure, chosen)
        return chosen


@dataclass(frozen=True)
class Output:
    """What decoding gave.

    Attributes:
        ids: generated ids of each prompt, with everything that follows the end token.
        forwards: denoising forwards of each prompt; a commit rides on the next block's first.
    """

    ids: list[list[int]]
    forwards: list[int]

    @property
    def texts(self) -> list[str]:
        """Answers: text before the end token."""
        return [decode(ids) for ids in self.ids]

    @property
    def tokens_per_forward(self) -> float:
        """Answer tokens, the end token included, over denoising forwards."""
        useful = sum(ids.index(EOS) + 1 if EOS in ids else len(ids) for ids in self.ids)
        return useful / sum(self.forwards)


@torch.inference_mode()
def generate(
    network: Network,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    max_tokens: int = 24,
    decoding: Decoding = Decoding(),
    mask_id: int = MASK,
    stop_ids: Sequence[int] = (EOS,),
) -> Output:
    """Decodes a batch of prompts.

    Args:
        network: the model, on any device.
        prompts: texts, or token ids.
        max_tokens: tokens to generate; for ``llada`` the length of the canvas.
        decoding: how blocks are unmasked.
        mask_id: id of a hidden token.
        stop_ids: ids after whose block an ``sdar`` row stops; ``llada`` fills its canvas.
    """
    device = network.head.weight.device
    causal = network.config.family == "sdar"
    block = decoding.block or network.config.block_size
    rows = [encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in prompts]
    start = torch.tensor([len(row) for row in rows], device=device)
    end = start + max_tokens
    if causal:
        end = (end + block - 1) // block * block
    length = int(end.max())
    canvas = torch.full((len(rows), length), mask_id, device=device)
    for index, row in enumerate(rows):
        canvas[index, : len(row)] = torch.tensor(row, device=device)
    positions = torch.arange(length, device=device).expand(len(rows), -1)
    within = positions < end[:, None]
    answer = within & (positions >= start[:, None])
    blocks = positions // block if causal else (positions - start[:, None]).clamp(min=0) // block
    visible = within[:, None, :].expand(-1, length, -1)
    if causal:
        visible = blocks[:, :, None] >= blocks[:, None, :]
    hidden = answer.clone()
    step = torch.zeros(len(rows), dtype=torch.long, device=device)
    forwards = torch.zeros_like(step)
    stops = torch.tensor(list(stop_ids), device=device, dtype=torch.long)
    done = ~hidden.any(1)
    while not bool(done.all()):
        current = torch.where(hidden, blocks, length).amin(1, keepdim=True)
        active = hidden & (blocks == current) & ~done[:, None]
        logits = network(canvas, positions, visible).float()
        confidence, choice = logits.softmax(-1).max(-1)
        chosen = decoding.select(confidence, active, decoding.quota(step, block))
        canvas = torch.where(chosen, choice, canvas)
        hidden &= ~chosen
        forwards += ~done
        unmasked = ~(hidden & (blocks == current)).any(1)
        step = torch.where(unmasked, 0, step + 1)
        if causal:
            stopped = (torch.isin(canvas, stops) & answer & (blocks == current)).any(1)
            done |= unmasked & stopped
        done |= ~hidden.any(1)
    ids = [canvas[i, len(row) : len(row) + max_tokens].tolist() for i, row in enumerate(rows)]
    return Output(ids, forwards.tolist())
