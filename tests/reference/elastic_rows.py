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
    threshold: float = 0.0,
) -> Elastic:
    """Greedy block diffusion, whole blocks cut to the length asked for.

    Args:
        model: The network.
        prompt: Token ids.
        gen_length: Tokens of the answer.
        block_length: Tokens per block.
        steps: Steps of a block, for algorithms that count them.
        candidates: Masked positions of a step, if it unmasks no more.
        algorithm: ``low_confidence_static``, ``sequential``, ``low_confidence_dynamic`` or ``threshold``.
        max_steps: Most steps of a block.
        threshold: Of the last two algorithms.
    """
    known, at, total = list(prompt), [], 0
    computed: list[list[int]] = []
    dynamic = algorithm in ("low_confidence_dynamic", "threshold")
    while len(known) < len(prompt) + gen_length:
        start = len(known) // block_length * block_length
        given = len(known) - start
        canvas = known[start:] + [model.mask_id] * (block_length - given)
        masked = [i >= given for i in range(block_length)]
        unmasked_at = [-1] * block_length
        sure = [0.0] * block_length
        stale: list[int] = []
        network, step = _Cached(model), 0
        while any(masked):
            open_ = [i for i in range(block_length) if masked[i]]
            count = max(1, block_length // steps + (step < block_length % steps))
            last = max_steps is not None and step + 1 == max_steps
            likely = open_ if algorithm == "sequential" else sorted(open_, key=lambda i: (-sure[i], i))
            if step == 0 or (dynamic and last):
                among, rows = len(open_), list(range(block_length))
                stale = []
            elif dynamic:
                among = min(max(candidates, -(-block_length // steps)), block_length)
                length = min(max(among + -(-among // 2), given), block_length)
                rows = _worth(likely, among, stale, block_length)[:length]
            else:
                among = min(max(len(open_) if last else count, candidates), len(open_))
                # Blocks that begin with known tokens compute no fewer rows than these.
                length = max(among + len(stale), given)
                rows = _worth(likely, among, stale, block_length)[:length]
            if step == 0:
                position = torch.arange(start + block_length)
                block = position // block_length
                sees = block[:, None] >= block[None, :]
                logits = network.logits(known[:start] + canvas, position, sees)[start:]
            else:
                places = torch.tensor([start + i for i in rows])
                logits = network.logits([canvas[i] for i in rows], places, None)
            computed.append(sorted(rows))
            logits = logits.double()
            probability = logits.softmax(-1)
            logits[:, model.mask_id] = -torch.inf
            token = logits.argmax(-1)
            proposed = {}
            for row, i in enumerate(rows):
                if masked[i] and (step == 0 or (dynamic and last) or i in likely[:among]):
                    proposed[i] = int(token[row])
                    sure[i] = float(probability[row, token[row]])
            chosen = sorted(_chosen(algorithm, proposed, sure, len(open_) if last else count, threshold))
            stale = sorted([i for i in stale if i not in rows] + chosen)
            for i in chosen:
                canvas[i], masked[i], unmasked_at[i] = proposed[i], False, total
            step, total = step + 1, total + 1
        at += unmasked_at[given:]
        known = known[:start] + canvas
    output = known[len(prompt) :][:gen_length]
    return Elastic(output, total, at[: len(output)], computed)


def _worth(likely: list[int], among: int, stale: list[int], block_length: int) -> list[int]:
    """Positions in the order in which a step computes them."""
    rest = [i for i in range(block_length) if i not in likely and i not in stale]
    return likely[:among] + stale + likely[among:] + rest


def _chosen(
    algorithm: str, proposed: dict[int, int], sure: list[float], count: int, threshold: float
) -> list[int]:
    """What a step unmasks of the masked positions that it has computed."""
    best = sorted(proposed, key=lambda i: (-sure[i], i))
    if algorithm == "sequential":
        return sorted(proposed)[:count]
    if algorithm == "threshold" and count < len(best):
        return [i for i in best if sure[i] >= threshold] or best[:1]
    if algorithm == "low_confidence_dynamic":
        above = [i for i in best if sure[i] > threshold]
        return above if len(above) >= count else best[:count]
    return best[:count]
