# SPDX-License-Identifier: Apache-2.0
"""LLaDA as its published loop runs it: a plain PyTorch forward of all rows at every step.

Written for comparison: the published ``generate.py`` calls the model on prompt and canvas, takes
a softmax in float64, gathers, and unmasks the most confident masks of the block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from benchmarks.gpu.shapes import SHAPES


class PlainLlada:
    """The shape with random weights in bfloat16, attention by PyTorch's own kernels."""

    def __init__(self, shape: str = "llada-8b", layers: int | None = None) -> None:
        config: dict[str, Any] = SHAPES[shape]
        self.hidden, self.heads = config["d_model"], config["n_heads"]
        self.inner, self.vocabulary = config["mlp_hidden_size"], config["vocab_size"]
        self.mask, self.eps = config["mask_token_id"], config["rms_norm_eps"]
        self.theta = config["rope_theta"]
        h, i = self.hidden, self.inner
        self.blocks = [
            {
                "q": _weight(h, h),
                "k": _weight(h, h),
                "v": _weight(h, h),
                "out": _weight(h, h),
                "gate": _weight(i, h),
                "up": _weight(i, h),
                "down": _weight(h, i),
                "attention_norm": torch.ones(h, device="cuda", dtype=torch.bfloat16),
                "norm": torch.ones(h, device="cuda", dtype=torch.bfloat16),
            }
            for _ in range(layers or config["n_layers"])
        ]
        self.embedding = _weight(self.vocabulary, h)
        self.norm = torch.ones(h, device="cuda", dtype=torch.bfloat16)
        self.head = _weight(self.vocabulary, h)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits ``[batch, length, vocabulary]`` of ids ``[batch, length]``, all rows."""
        batch, length = ids.shape
        size = self.hidden // self.heads
        angle = torch.arange(length, device="cuda")[:, None] * self.theta ** (
            -torch.arange(0, size, 2, device="cuda") / size
        )
        cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
        x = self.embedding[ids]
        for w in self.blocks:
            y = self._norm(x, w["attention_norm"])
            q, k, v = (
                linear(y, w[name]).view(batch, length, self.heads, size).transpose(1, 2) for name in "qkv"
            )
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
            y = scaled_dot_product_attention(q, k, v)
            x = x + linear(y.transpose(1, 2).reshape(batch, length, self.hidden), w["out"])
            y = self._norm(x, w["norm"])
            x = x + linear(silu(linear(y, w["gate"])) * linear(y, w["up"]), w["down"])
        return linear(self._norm(x, self.norm), self.head)

    def generate(self, prompt: torch.Tensor, length: int, block: int, steps: int) -> torch.Tensor:
        """The canvas ``[batch, length]`` behind prompts ``[batch, n]``; ``steps`` a block."""
        batch, start = prompt.shape
        ids = torch.full((batch, start + length), self.mask, device="cuda")
        ids[:, :start] = prompt
        count = block // steps
        for first in range(start, start + length, block):
            for _ in range(steps):
                masked = ids == self.mask
                logits = self.forward(ids)
                token = logits.argmax(-1)
                probability = logits.to(torch.float64).softmax(-1)
                confidence = probability.gather(-1, token[..., None])[..., 0]
                confidence[:, first + block :] = -torch.inf
                confidence = torch.where(masked, confidence, -torch.inf)
                for row in range(batch):
                    best = confidence[row].topk(count).indices
                    ids[row, best] = token[row, best]
        return ids[:, start:]

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(x, (self.hidden,), weight, self.eps)


def _weight(rows: int, columns: int) -> torch.Tensor:
    return torch.empty(rows, columns, device="cuda", dtype=torch.bfloat16).normal_(0, 0.02)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.float().chunk(2, -1)
    turned = torch.cat((-second, first), -1)
    return (x.float() * cos + turned * sin).to(x.dtype)
