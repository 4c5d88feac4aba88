# SPDX-License-Identifier: Apache-2.0
"""SDAR-MoE and LLaDA2 in plain PyTorch, float32, one expert after the other.

The decoding loop is SDAR's, which LLaDA2.0 shares: static and dynamic low
confidence over blocks of absolute positions. What is here is the model: attention
over the whole sequence under an explicit mask, and each family's router, written
out from its description. No code is shared with the package under test.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.functional import silu

from tests.reference.rope import rotary
from tests.reference.sdar import SdarReference, linear


class MoeReference(SdarReference):
    """What the two families have in common; the names are SDAR-MoE's."""

    mask_id_default = 151669
    embedding = "model.embed_tokens.weight"
    attention = "self_attn"
    output = "o_proj"
    query_norm, key_norm = "q_norm", "k_norm"

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self.config = json.loads((folder / "config.json").read_text())
        shards = [load_file(file) for file in sorted(folder.glob("*.safetensors"))]
        self.weights = {name: t.float() for shard in shards for name, t in shard.items()}
        self.mask_id = self.config.get("mask_token_id", self.mask_id_default)
        self.size = self.config.get("head_dim") or (
            self.config["hidden_size"] // self.config["num_attention_heads"]
        )

    def under(self, ids: list[int], position: torch.Tensor, sees: torch.Tensor) -> torch.Tensor:
        """See :meth:`SdarReference.under`."""
        x = self.weights[self.embedding][torch.tensor(ids)]
        for layer in range(self.config["num_hidden_layers"]):
            name = f"model.layers.{layer}."
            x = x + self._attend(name, self._norm(name + "input_layernorm", x), position, sees)
            x = x + self._mix(name + "mlp.", layer, self._norm(name + "post_attention_layernorm", x))
        x = self._norm("model.norm", x)
        return x @ self.weights.get("lm_head.weight", self.weights[self.embedding]).T

    def rotary_size(self) -> int:
        """Leading dimensions of a head that turn with the position."""
        return int(self.size)

    def projected(self, name: str, h: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values, each ``[tokens, heads, size]``."""
        return tuple(self._linear(f"{name}{p}_proj", h).unflatten(1, (-1, self.size)) for p in "qkv")  # type: ignore[no-untyped-call]

    def is_dense(self, layer: int) -> bool:
        """Whether a layer has one network in the place of experts."""
        step = self.config["decoder_sparse_step"]
        return layer in self.config["mlp_only_layers"] or (layer + 1) % step != 0

    def route(self, name: str, h: torch.Tensor) -> torch.Tensor:
        """Weight of every expert for every token, 0 where it is not chosen."""
        weight = self._linear(name + "gate", h).softmax(-1)
        kept, chosen = weight.topk(self.config["num_experts_per_tok"], dim=-1)
        if self.config["norm_topk_prob"]:
            kept = kept / kept.sum(-1, keepdim=True)
        return torch.zeros_like(weight).scatter(1, chosen, kept)

    def shared(self, name: str, h: torch.Tensor) -> torch.Tensor:
        """What every token gets beside its experts."""
        return torch.zeros_like(h)

    def _attend(self, name: str, h: torch.Tensor, position: torch.Tensor, sees: torch.Tensor) -> torch.Tensor:
        name += self.attention + "."
        q, k, v = self.projected(name, h)
        q = self._turn(self._norm(name + self.query_norm, q), position)
        k = self._turn(self._norm(name + self.key_norm, k), position)
        group = q.shape[1] // k.shape[1]
        heads = []
        for head in range(q.shape[1]):
            score = q[:, head] @ k[:, head // group].T / self.size**0.5
            weight = score.masked_fill(~sees, -torch.inf).softmax(-1)
            heads.append(weight @ v[:, head // group])
        return self._linear(name + self.output, torch.cat(heads, dim=-1))

    def _turn(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        half = self.rotary_size() // 2
        cos, sin = (t[:, None] for t in rotary(position, 2 * half, self.config))
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)

    def _mix(self, name: str, layer: int, h: torch.Tensor) -> torch.Tensor:
        if self.is_dense(layer):
            return self._network(name, h)
        weight = self.route(name, h)
        total = self.shared(name, h)
        for expert in range(self.config["num_experts"]):
            rows = weight[:, expert].nonzero()[:, 0]
            if len(rows):
                part = self._network(f"{name}experts.{expert}.", h[rows])
                total[rows] += part * weight[rows, expert, None]
        return total

    def _network(self, name: str, h: torch.Tensor) -> torch.Tensor:
        inner = silu(self._linear(name + "gate_proj", h)) * self._linear(name + "up_proj", h)
        return self._linear(name + "down_proj", inner)

    def _linear(self, name: str, h: torch.Tensor) -> torch.Tensor:
        return linear(self.weights, name, h)

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config["rms_norm_eps"])
        return x * scale * self.weights[name + ".weight"]


class SdarMoeReference(MoeReference):
    """``SDARMoeForCausalLM``: softmax over the experts, then the best few."""


class Llada2Reference(MoeReference):
    """``LLaDA2MoeModelLM``: the best groups of experts first, then the best of those."""

    mask_id_default = 156895
    embedding = "model.word_embeddings.weight"
    attention = "attention"
    output = "dense"
    query_norm, key_norm = "query_layernorm", "key_layernorm"

    def rotary_size(self) -> int:
        """See :meth:`MoeReference.rotary_size`."""
        return int(self.size * self.config["partial_rotary_factor"])

    def projected(self, name: str, h: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See :meth:`MoeReference.projected`: one matrix, queries first."""
        heads, kv_heads = (self.config[f"num_{kind}_heads"] for kind in ("attention", "key_value"))
        together = self._linear(name + "query_key_value", h).unflatten(1, (-1, self.size))  # type: ignore[no-untyped-call]
        parts: tuple[torch.Tensor, ...] = together.split([heads, kv_heads, kv_heads], dim=1)
        return parts

    def is_dense(self, layer: int) -> bool:
        """See :meth:`MoeReference.is_dense`."""
        return bool(layer < self.config["first_k_dense_replace"])

    def route(self, name: str, h: torch.Tensor) -> torch.Tensor:
        """See :meth:`MoeReference.route`.

        The bias decides who is chosen; the weights are those of the plain scores.
        """
        config = self.config
        score = self._linear(name + "gate", h).sigmoid()
        biased = score + self.weights[name + "gate.expert_bias"]
        groups = biased.unflatten(1, (config["n_group"], -1))  # type: ignore[no-untyped-call]
        best_two = groups.sort(dim=-1, descending=True).values[..., :2].sum(-1)
        group_rank = best_two.argsort(dim=-1, descending=True).argsort(dim=-1)
        open_ = (group_rank < config["topk_group"])[..., None].expand_as(groups).flatten(1)
        order = biased.masked_fill(~open_, -torch.inf).argsort(dim=-1, descending=True)
        chosen = order[:, : config["num_experts_per_tok"]]
        kept = score.gather(1, chosen)
        kept = kept / (kept.sum(-1, keepdim=True) + 1e-20) * config["routed_scaling_factor"]
        return torch.zeros_like(score).scatter(1, chosen, kept)

    def shared(self, name: str, h: torch.Tensor) -> torch.Tensor:
        """See :meth:`MoeReference.shared`."""
        if not self.config["num_shared_experts"]:
            return super().shared(name, h)
        return self._network(name + "shared_experts.", h)
