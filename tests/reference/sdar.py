# SPDX-License-Identifier: Apache-2.0
"""SDAR in plain PyTorch: the model and its published decoding loop.

Written to be read against the published description, not to be fast: no cache, no
batch, the whole sequence recomputed with an explicit mask at every step. It shares
no code with the package under test.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.functional import scaled_dot_product_attention, silu

from tests.reference.rope import rotary


@dataclass
class Decoded:
    """What the loop generated for one prompt."""

    output_ids: list[int]
    """Generated tokens, whole blocks cut to the length asked for."""
    denoising_steps: int
    """Forward passes that unmasked something."""
    unmask_step: list[int]
    """The step, counted over all blocks, that unmasked each output token."""


class SdarReference:
    """A checkpoint folder in the published layout, in float32."""

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = {
            name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()
        }
        self.mask_id = self.config.get("mask_token_id", 151669)

    def logits(self, ids: list[int], block_length: int) -> torch.Tensor:
        """Logits ``[len(ids), vocab]`` with block-causal attention."""
        position = torch.arange(len(ids))
        block = position // block_length
        return self.under(ids, position, block[:, None] >= block[None, :])

    def under(self, ids: list[int], position: torch.Tensor, sees: torch.Tensor) -> torch.Tensor:
        """Logits ``[n, vocab]`` of tokens at positions ``[n]`` under a mask, bool ``[n, n]``."""
        config, weights = self.config, self.weights
        heads = config["num_attention_heads"]
        kv_heads = config["num_key_value_heads"]
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
            if w + "self_attn.q_norm.weight" in weights:
                q = rms_norm(q, weights[w + "self_attn.q_norm.weight"], eps)
                k = rms_norm(k, weights[w + "self_attn.k_norm.weight"], eps)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            k = k.repeat_interleave(heads // kv_heads, dim=0)
            v = v.repeat_interleave(heads // kv_heads, dim=0)
            a = scaled_dot_product_attention(q, k, v, attn_mask=sees)
            a = a.transpose(0, 1).reshape(len(ids), heads * size)
            x = x + linear(weights, w + "self_attn.o_proj", a)
            h = rms_norm(x, weights[w + "post_attention_layernorm.weight"], eps)
            gate = silu(h @ weights[w + "mlp.gate_proj.weight"].T)
            up = h @ weights[w + "mlp.up_proj.weight"].T
            x = x + (gate * up) @ weights[w + "mlp.down_proj.weight"].T
        x = rms_norm(x, weights["model.norm.weight"], eps)
        head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
        return x @ head.T

    def generate(
        self,
        prompt: list[int],
        gen_length: int,
        block_length: int,
        steps: int,
        algorithm: str,
        threshold: float = 0.85,
        entropy_bound: float = 0.35,
        stop_ids: tuple[int, ...] = (),
        template: tuple[int, ...] = (),
    ) -> Decoded:
        """Greedy block diffusion; generation stops after a block with a stop id.

        ``template`` holds the answer's tokens that are given, -1 for the others.
        """
        blocks = -(-(len(prompt) + gen_length) // block_length)
        whole = [*prompt, *template, *[-1] * (gen_length + block_length)]
        known = list(prompt)
        unmasked: list[int] = []
        total = 0
        for number in range(len(prompt) // block_length, blocks):
            start = number * block_length
            ahead = whole[len(known) : start + block_length]
            canvas = known[start:] + [self.mask_id if token < 0 else token for token in ahead]
            masked = torch.tensor([False] * (len(known) - start) + [token < 0 for token in ahead])
            at = [-1] * block_length
            step = 0
            while masked.any():
                logits = self.logits(known[:start] + canvas, block_length)[start:]
                logits = logits.double()
                probability = logits.softmax(-1)
                choice = logits.clone()
                choice[:, self.mask_id] = -torch.inf
                token = choice.argmax(-1)
                confidence = probability.gather(1, token[:, None])[:, 0]
                entropy = -(probability * logits.log_softmax(-1)).sum(-1)
                n = block_length // steps + (step < block_length % steps)
                for i in _select(
                    algorithm,
                    confidence,
                    entropy,
                    masked,
                    max(n, 1),
                    threshold,
                    entropy_bound,
                ):
                    canvas[i] = int(token[i])
                    masked[i] = False
                    at[i] = total
                step += 1
                total += 1
            unmasked += at[len(known) - start :]
            known = known[:start] + canvas
            if set(known[len(prompt) :]) & set(stop_ids):
                break
        output = known[len(prompt) :][:gen_length]
        for i, last in enumerate(output):
            if last in stop_ids:
                output = output[: i + 1]
                break
        return Decoded(output, total, unmasked[: len(output)])


def _select(
    algorithm: str,
    confidence: torch.Tensor,
    entropy: torch.Tensor,
    masked: torch.Tensor,
    n: int,
    threshold: float,
    entropy_bound: float,
) -> list[int]:
    """The masked positions that a step unmasks."""
    open_ = masked.nonzero()[:, 0].tolist()
    best = sorted(open_, key=lambda i: (-float(confidence[i]), i))
    if algorithm == "sequential":
        return open_[:n]
    if algorithm == "low_confidence_static":
        return best[:n]
    if algorithm == "low_confidence_dynamic":
        above = [i for i in open_ if confidence[i] > threshold]
        return above if len(above) >= n else best[:n]
    assert algorithm == "entropy_bounded", algorithm
    rising = sorted(open_, key=lambda i: (float(entropy[i]), i))
    count, summed = 0, 0.0
    for i in rising:
        summed += float(entropy[i])
        if summed >= entropy_bound:
            break
        count += 1
    return rising[: max(count, 1)]


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def linear(weights: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    """One layer, with its bias where the checkpoint has one."""
    x = x @ weights[name + ".weight"].T
    return x + weights[name + ".bias"] if name + ".bias" in weights else x


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


class StableDiffcoderReference(SdarReference):
    """Stable-DiffCoder: Llama's layers under the same attention; the network, not its loop."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self.mask_id = 5
