# SPDX-License-Identifier: Apache-2.0
"""Fast-dLLM v2 in plain PyTorch: the model and its published decoding loop.

No cache, no batch: the whole sequence is recomputed under an explicit mask at every
step, which the published loop without its sub-block cache equals. No code is shared
with the package under test.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.functional import silu

from tests.reference.rope import rotary
from tests.reference.sdar import Decoded


class FastDllmV2Reference:
    """A checkpoint folder in the published layout, in float32."""

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self.config = json.loads((folder / "config.json").read_text())
        shards = [load_file(file) for file in sorted(folder.glob("*.safetensors"))]
        self.weights = {name: t.float() for shard in shards for name, t in shard.items()}
        self.mask_id = self.config.get("mask_token_id", 151665)

    def generate(
        self,
        prompt: list[int],
        gen_length: int,
        block_length: int,
        sub_block_length: int,
        threshold: float,
        stop_ids: tuple[int, ...] = (),
    ) -> Decoded:
        """Greedy decoding; a step is a forward pass that unmasks something.

        A block's first token is the autoregressive prediction behind the finished
        blocks. The rest is unmasked sub-block after sub-block, with the whole block in
        view: everything above the threshold, and always the most confident position.
        """
        known = list(prompt)
        at: list[int] = []
        step = 0
        while len(known) < len(prompt) + gen_length and not set(known[len(prompt) :]) & set(stop_ids):
            if len(known) % block_length == 0:
                known.append(self._choose(self._logits(known, block_length)[-1:])[0])
                at.append(step)
                step += 1
                if block_length == 1:
                    continue
            start = len(known) // block_length * block_length
            canvas = known[start:] + [self.mask_id] * (start + block_length - len(known))
            open_ = set(range(len(known) - start, block_length))
            unmasked = dict.fromkeys(open_, -1)
            for first in range(0, block_length, sub_block_length):
                while here := sorted(open_ & set(range(first, first + sub_block_length))):
                    logits = self._logits(known[:start] + canvas, block_length)[start:]
                    behind = logits[[i - 1 for i in here]]  # Row i - 1 predicts token i.
                    tokens = self._choose(behind)
                    score = behind.double().softmax(-1)[range(len(here)), tokens]
                    best = int(score.argmax())
                    for n, i in enumerate(here):
                        if n == best or score[n] > threshold:
                            canvas[i] = tokens[n]
                            open_.remove(i)
                            unmasked[i] = step
                    step += 1
            known = known[:start] + canvas
            at += [unmasked[i] for i in sorted(unmasked)]
        output = known[len(prompt) :][:gen_length]
        for i, token in enumerate(output):
            if token in stop_ids:
                output = output[: i + 1]
                break
        return Decoded(output, step, at[: len(output)])

    def _choose(self, logits: torch.Tensor) -> list[int]:
        allowed = logits.clone()
        allowed[:, self.mask_id] = -torch.inf
        tokens: list[int] = allowed.argmax(-1).tolist()
        return tokens

    def _logits(self, ids: list[int], block_length: int) -> torch.Tensor:
        config, weights = self.config, self.weights
        block = torch.arange(len(ids)) // block_length
        sees = block[:, None] >= block[None, :]
        x = weights["model.embed_tokens.weight"][torch.tensor(ids)]
        for layer in range(config["num_hidden_layers"]):
            name = f"model.layers.{layer}."
            x = x + self._attend(name + "self_attn.", self._norm(name + "input_layernorm", x), sees)
            h = self._norm(name + "post_attention_layernorm", x)
            inner = silu(self._linear(name + "mlp.gate_proj", h)) * self._linear(name + "mlp.up_proj", h)
            x = x + self._linear(name + "mlp.down_proj", inner)
        x = self._norm("model.norm", x)
        head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
        return x @ head.T

    def _attend(self, name: str, h: torch.Tensor, sees: torch.Tensor) -> torch.Tensor:
        heads, kv = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        size = self.config["hidden_size"] // heads
        q, k, v = (self._linear(f"{name}{part}_proj", h).unflatten(1, (-1, size)) for part in "qkv")  # type: ignore[no-untyped-call]
        q, k = self._turn(q), self._turn(k)
        mixed = []
        for head in range(heads):
            score = q[:, head] @ k[:, head * kv // heads].T / size**0.5
            mixed.append(score.masked_fill(~sees, -torch.inf).softmax(-1) @ v[:, head * kv // heads])
        return self._linear(name + "o_proj", torch.cat(mixed, dim=-1))

    def _turn(self, x: torch.Tensor) -> torch.Tensor:
        cos, sin = (t[:, None] for t in rotary(torch.arange(len(x)), x.shape[-1], self.config))
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    def _linear(self, name: str, h: torch.Tensor) -> torch.Tensor:
        out = h @ self.weights[name + ".weight"].T
        return out + self.weights[name + ".bias"] if name + ".bias" in self.weights else out

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config["rms_norm_eps"])
        return x * scale * self.weights[name + ".weight"]
