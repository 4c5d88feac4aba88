# SPDX-License-Identifier: Apache-2.0
"""Nemotron-Labs-Diffusion in plain PyTorch: its network, and its ways to decode.

No cache and no batch: the whole sequence is computed again at every step, with an explicit mask. No code is
shared with the package under test.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn.functional import scaled_dot_product_attention, silu

from tests.reference.rope import yarn
from tests.reference.sdar import linear, rms_norm, rotate


@dataclass
class Written:
    """What was generated for one prompt."""

    output_ids: list[int]
    forwards: int = 0
    """Passes behind the prompt's."""


class NemotronReference:
    """A checkpoint folder in the published layout, in float32."""

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.weights = {n: t.float() for n, t in load_file(folder / "model.safetensors").items()}
        self.mask_id = self.config["mask_token_id"]

    def logits(self, ids: list[int], block_length: int) -> torch.Tensor:
        """Logits ``[len(ids), vocab]`` where every position sees up to the end of its block."""
        block = torch.arange(len(ids)) // block_length
        return self.under(ids, block[:, None] >= block[None, :])

    def under(self, ids: list[int], sees: torch.Tensor) -> torch.Tensor:
        """Logits ``[len(ids), vocab]`` under a mask, bool ``[len(ids), len(ids)]``."""
        config, weights = self.config, self.weights
        size, eps, rope = config["head_dim"], config["rms_norm_eps"], config["rope_parameters"]
        group = config["num_attention_heads"] // config["num_key_value_heads"]
        position = torch.arange(len(ids))
        base = float(rope["rope_theta"])
        speed, _ = yarn(base ** (-torch.arange(0, size, 2).double() / size), size, base, rope)
        angle = position[:, None].double() * speed
        cos, sin = angle.cos().float(), angle.sin().float()
        turns = torch.floor(position / rope["original_max_position_embeddings"])
        grown = (1 + rope["llama_4_scaling_beta"] * torch.log(1 + turns))[:, None]
        x = weights["encoder.embed_tokens.weight"][torch.tensor(ids)]
        for layer in range(config["num_hidden_layers"]):
            w = f"encoder.layers.{layer}."
            h = rms_norm(x, weights[w + "input_layernorm.weight"], eps)
            q, k, v = (
                linear(weights, f"{w}self_attn.{name}_proj", h).view(len(ids), -1, size).transpose(0, 1)
                for name in "qkv"
            )
            q, k = rotate(q, cos, sin) * grown, rotate(k, cos, sin)
            k, v = k.repeat_interleave(group, dim=0), v.repeat_interleave(group, dim=0)
            a = scaled_dot_product_attention(q, k, v, attn_mask=sees)
            x = x + linear(weights, w + "self_attn.o_proj", a.transpose(0, 1).flatten(1))
            h = rms_norm(x, weights[w + "post_attention_layernorm.weight"], eps)
            inner = silu(linear(weights, w + "mlp.gate_proj", h)) * linear(weights, w + "mlp.up_proj", h)
            x = x + linear(weights, w + "mlp.down_proj", inner)
        return linear(weights, "diffusion_head", rms_norm(x, weights["encoder.norm.weight"], eps))

    def write(
        self, prompt: list[int], length: int, budget: int | None = None, end_think: int = -1
    ) -> list[int]:
        """One token after the other; behind ``budget`` tokens the thinking ends."""
        output: list[int] = []
        while len(output) < length:
            token = self._next(prompt + output)
            if budget is not None and len(output) >= budget and end_think not in output:
                token = end_think
            output.append(token)
        return output

    def denoise(
        self, prompt: list[int], length: int, block_length: int, threshold: float, seeded: bool = True
    ) -> Written:
        """Blocks over a causal context; without seeds the mask token counts for nothing."""
        known, result = list(prompt), Written([])
        while len(known) < len(prompt) + length:
            block = [self.mask_id] * block_length
            if seeded:
                block[0] = self._next(known)
            while self.mask_id in block:
                logits = self._block(known, block)
                choice = logits.clone()
                choice[:, self.mask_id] = -math.inf
                probability = (logits if seeded else choice).double().softmax(-1)
                token = choice.argmax(-1)
                open_ = [i for i, one in enumerate(block) if one == self.mask_id]
                sure = {i: float(probability[i, token[i]]) for i in open_}
                best = max(open_, key=lambda i: (sure[i], -i))
                for i in open_:
                    if sure[i] >= threshold or i == best:
                        block[i] = int(token[i])
                result.forwards += 1
            known += block
            result.forwards += 1
        result.output_ids = known[len(prompt) :][:length]
        return result

    def _next(self, ids: list[int]) -> int:
        causal = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
        return int(self.under(ids, causal)[-1].argmax())

    def _block(self, known: list[int], block: list[int]) -> torch.Tensor:
        """Logits of a block that sees all of itself, over a context that is causal."""
        length = len(known) + len(block)
        sees = torch.ones(length, length, dtype=torch.bool).tril()
        sees[len(known) :] = True
        return self.under(known + block, sees)[len(known) :]
