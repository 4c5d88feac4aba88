# SPDX-License-Identifier: Apache-2.0
"""SDAR with elastic rows in plain PyTorch: most steps of a block compute a part of it.

Keys and values are kept in plain tensors, one row per position. A block's first step computes everything up
to its end, under the block-causal mask. A later step computes what the step before unmasked and some of the
masked positions; these rows see all keys up to the block's end as they were last written. No batch, lists for
what is chosen; no code is shared with the package under test.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn.functional import scaled_dot_product_attention, silu

from tests.reference.rope import rotary
from tests.reference.sdar import Decoded, SdarReference, linear, rms_norm, rotate


@dataclass
class Elastic(Decoded):
    """What was generated, and the positions that each step computed of its block."""

    computed: list[list[int]] = field(default_factory=list)


class _Cached:
    """The network with keys and values of each layer, ``[KV heads, positions, head size]``."""

    def __init__(self, model: SdarReference) -> None:
        self.model = model
        layers = model.config["num_hidden_layers"]
        self.keys: list[torch.Tensor] = [torch.empty(0)] * layers
        self.values: list[torch.Tensor] = [torch.empty(0)] * layers

    def logits(self, ids: list[int], position: torch.Tensor, sees: torch.Tensor | None) -> torch.Tensor:
        """Logits ``[n, vocab]`` of tokens at positions ``[n]``, whose keys and values are written first.

        ``sees`` is bool ``[n, keys]``; None: all that is written. With it the cache begins anew.
        """
        config, weights = self.model.config, self.model.weights
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        size = config.get("head_dim") or config["hidden_size"] // heads
        eps = config["rms_norm_eps"]
        cos, sin = rotary(position, size, config)
        x = weights["model.embed_tokens.weight"][torch.tensor(ids)]
        for layer in range(config["num_hidden_layers"]):
            w = f"model.layers.{layer}."
            h = rms_norm(x, weights[w + "input_layernorm.weight"], eps)
            q, k, v = (
                linear(weights, f"{w}self_attn.{name}_proj", h).view(len(ids), -1, size).transpose(0, 1)
                for name in "qkv"
            )
            q = rms_norm(q, weights[w + "self_attn.q_norm.weight"], eps)
            k = rms_norm(k, weights[w + "self_attn.k_norm.weight"], eps)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            if sees is not None:
                self.keys[layer], self.values[layer] = k.clone(), v.clone()
            else:
                self.keys[layer][:, position] = k
                self.values[layer][:, position] = v
            k = self.keys[layer].repeat_interleave(heads // kv_heads, dim=0)
            v = self.values[layer].repeat_interleave(heads // kv_heads, dim=0)
            a = scaled_dot_product_attention(q, k, v, attn_mask=sees)
            x = x + linear(weights, w + "self_attn.o_proj", a.transpose(0, 1).reshape(len(ids), heads * size))
            h = rms_norm(x, weights[w + "post_attention_layernorm.weight"], eps)
            gate = silu(h @ weights[w + "mlp.gate_proj.weight"].T)
            up = h @ weights[w + "mlp.up_proj.weight"].T
            x = x + (gate * up) @ weights[w + "mlp.down_proj.weight"].T
        x = rms_norm(x, weights["model.norm.weight"], eps)
        return x @ weights.get("lm_head.weight", weights["model.embed_tokens.weight"]).T


def decode(
    model: SdarReference,
    prompt: list[int],
    gen_length: int,
    block_length: int,
    steps: int,
    candidates: int,
    algorithm: str = "low_confidence_static",
    max_steps: int | None = None,
) -> Elastic:
    """Greedy block diffusion, whole blocks cut to the length asked for."""
    known, at, computed, total = list(prompt), [], [], 0
    while len(known) < len(prompt) + gen_length:
        start = len(known) // block_length * block_length
        end, given = start + block_length, len(known) - start
        canvas = known[start:] + [model.mask_id] * (block_length - given)
        masked = [i >= given for i in range(block_length)]
        unmasked_at = [-1] * block_length
        sure = [0.0] * block_length
        fresh: list[int] = []
        network, step = _Cached(model), 0
        while any(masked):
            open_ = [i for i in range(block_length) if masked[i]]
            count = max(1, block_length // steps + (step < block_length % steps))
            if max_steps is not None and step + 1 == max_steps:
                count = len(open_)
            count = min(count, len(open_))
            among = min(max(count, candidates), len(open_))
            if step == 0:
                rows = list(range(block_length))
                position = torch.arange(end)
                block = position // block_length
                logits = network.logits(known[:start] + canvas, position, block[:, None] >= block[None, :])[
                    start:
                ]
            else:
                likely = open_ if algorithm == "sequential" else sorted(open_, key=lambda i: (-sure[i], i))
                rows = likely[:among] + fresh
                rest = likely[among:]
                rest += [i for i in range(block_length) if not masked[i] and i not in fresh]
                # Blocks that begin with known tokens compute no fewer rows than these.
                rows += rest[: max(0, given - len(rows))]
                logits = network.logits(
                    [canvas[i] for i in rows], torch.tensor([start + i for i in rows]), None
                )
            computed.append(sorted(rows))
            logits = logits.double()
            probability = logits.softmax(-1)
            logits[:, model.mask_id] = -torch.inf
            token = logits.argmax(-1)
            likely_rows = rows if step == 0 else rows[:among]
            proposed = {}
            for row, i in enumerate(likely_rows):
                if masked[i]:
                    proposed[i] = int(token[row])
                    sure[i] = float(probability[row, token[row]])
            order = (
                sorted(proposed)
                if algorithm == "sequential"
                else sorted(proposed, key=lambda i: (-sure[i], i))
            )
            fresh = sorted(order[:count])
            for i in fresh:
                canvas[i], masked[i], unmasked_at[i] = proposed[i], False, total
            step, total = step + 1, total + 1
        at += unmasked_at[given:]
        known = known[:start] + canvas
    output = known[len(prompt) :][:gen_length]
    return Elastic(output, total, at[: len(output)], computed)
