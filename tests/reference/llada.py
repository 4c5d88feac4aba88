# SPDX-License-Identifier: Apache-2.0
"""LLaDA in plain PyTorch: the model, its published loop, and Fast-dLLM's caches.

One store of keys and values for the whole sequence; a forward pass recomputes some
rows, writes theirs into the store and lets them see all of it. Recomputing every row
each time is the published loop; recomputing less is what the cache modes do.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.functional import scaled_dot_product_attention, silu

from tests.reference.sdar import Decoded, rms_norm, rotary, rotate


class LladaReference:
    """A checkpoint folder in the published layout, in float32."""

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self.config = json.loads((folder / "config.json").read_text())
        weights = load_file(folder / "model.safetensors")
        self.weights = {
            name.removeprefix("model.transformer."): tensor.float() for name, tensor in weights.items()
        }
        self.mask_id = self.config["mask_token_id"]

    def forward(
        self, ids: list[int], rows: range, store: list[tuple[torch.Tensor, torch.Tensor]]
    ) -> torch.Tensor:
        """Logits ``[len(rows), vocab]`` of some rows; updates the store in place."""
        config, weights = self.config, self.weights
        heads, eps = config["n_heads"], config["rms_norm_eps"]
        size = config["d_model"] // heads
        position = torch.arange(rows.start, rows.stop)
        cos, sin = rotary(position, size, config["rope_theta"])
        x = weights["wte.weight"][torch.tensor(ids)[position]]
        for layer in range(config["n_layers"]):
            w = f"blocks.{layer}."
            h = rms_norm(x, weights[w + "attn_norm.weight"], eps)
            q, k, v = (
                (h @ weights[f"{w}{name}_proj.weight"].T).view(len(rows), heads, size).transpose(0, 1)
                for name in "qkv"
            )
            if layer == len(store):
                store.append(tuple(torch.zeros(heads, len(ids), size) for _ in range(2)))
            keys, values = store[layer]
            keys[:, position], values[:, position] = rotate(k, cos, sin), v
            a = scaled_dot_product_attention(rotate(q, cos, sin), keys, values)
            a = a.transpose(0, 1).reshape(len(rows), heads * size)
            x = x + a @ weights[w + "attn_out.weight"].T
            h = rms_norm(x, weights[w + "ff_norm.weight"], eps)
            gate = silu(h @ weights[w + "ff_proj.weight"].T)
            up = h @ weights[w + "up_proj.weight"].T
            x = x + (gate * up) @ weights[w + "ff_out.weight"].T
        return rms_norm(x, weights["ln_f.weight"], eps) @ weights["ff_out.weight"].T

    def generate(
        self,
        prompt: list[int],
        gen_length: int,
        block_length: int,
        steps: int,
        algorithm: str = "low_confidence_static",
        threshold: float | None = None,
        cache: str = "none",
    ) -> Decoded:
        """Greedy decoding; ``threshold`` is the factor where that is the algorithm."""
        end = len(prompt) + gen_length
        ids = prompt + [self.mask_id] * gen_length
        masked = torch.arange(end) >= len(prompt)
        settled = [-1] * end
        total = 0
        for first in range(len(prompt), end, block_length):
            block = range(first, min(first + block_length, end))
            quota = len(block)
            store: list[tuple[torch.Tensor, torch.Tensor]] = []
            step = 0
            while masked[block.start : block.stop].any():
                rows = range(0, end)
                if step and cache == "prefix":
                    rows = range(first, end)
                elif step and cache == "dual":
                    rows = block
                logits = self.forward(ids, rows, store)
                logits = logits[first - rows.start :][: len(block)].double()
                choice = logits.clone()
                choice[:, self.mask_id] = -torch.inf
                token = choice.argmax(-1)
                confidence = logits.softmax(-1).gather(1, token[:, None])[:, 0]
                open_ = [i for i in range(len(block)) if masked[first + i]]
                best = sorted(open_, key=lambda i: (-float(confidence[i]), i))
                n = max(1, quota // steps + (step < quota % steps))
                for i in best[: count(algorithm, confidence[best], n, threshold)]:
                    ids[first + i] = int(token[i])
                    masked[first + i] = False
                    settled[first + i] = total
                step += 1
                total += 1
        return Decoded(ids[len(prompt) :], total, settled[len(prompt) :])


def count(algorithm: str, falling: torch.Tensor, n: int, threshold: float | None) -> int:
    """How many of the best positions a step settles, by falling confidence."""
    if algorithm == "low_confidence_static":
        return n
    assert threshold is not None
    if algorithm == "threshold":
        return max(1, int((falling >= threshold).sum()))
    assert algorithm == "factor", algorithm
    passed = 0
    while passed < len(falling) and falling[passed] >= 1 - threshold / (passed + 2):
        passed += 1
    # With all but the last passing, the published loop takes the last one too.
    return len(falling) if max(1, passed) >= len(falling) - 1 else max(1, passed)
