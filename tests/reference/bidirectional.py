# SPDX-License-Identifier: Apache-2.0
"""LLaDA, LLaDA-MoE and Dream in plain PyTorch: the models, their published loops, Fast-dLLM's caches.

One store of keys and values for the whole sequence; a forward pass recomputes some
rows, writes theirs into the store and lets them see all of it. Recomputing every row
each time is the published loop; recomputing less is what the cache modes do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn.functional import scaled_dot_product_attention, silu

from tests.reference.rope import rotary
from tests.reference.sdar import Decoded, linear, rms_norm, rotate

Store = list[tuple[torch.Tensor, torch.Tensor]]


class BidirectionalReference:
    """A checkpoint folder in the published layout, in float32."""

    shifted = False
    """Whether row i of the logits predicts token i + 1."""

    mask_id: int

    def forward(self, ids: list[int], rows: range, store: Store) -> torch.Tensor:
        """Logits ``[len(rows), vocab]`` of some rows; updates the store in place."""
        raise NotImplementedError

    def generate(
        self,
        prompt: list[int],
        gen_length: int,
        block_length: int,
        steps: int | None,
        algorithm: str = "low_confidence_static",
        threshold: float | None = None,
        cache: str = "none",
        template: Sequence[int] | None = None,
        **how: Any,
    ) -> Decoded:
        """Greedy decoding; ``threshold`` is the factor where that is the algorithm.

        Without ``steps`` a block takes as many as it has tokens, a short last one too.
        ``template`` holds the answer's tokens that are given, -1 for the others. ``how``
        may hold ``eps`` and ``top_k``, which Dream's sampler reads.
        """
        end = len(prompt) + gen_length
        template = template or [-1] * gen_length
        ids = prompt + [self.mask_id if token < 0 else token for token in template]
        masked = torch.tensor([False] * len(prompt) + [token < 0 for token in template])
        unmasked = [-1] * end
        total = 0
        for first in range(len(prompt), end, block_length):
            block = range(first, min(first + block_length, end))
            store: Store = []
            step = 0
            while masked[block.start : block.stop].any():
                rows = range(0, end)
                if step and cache == "prefix":
                    rows = range(first, end)
                elif step and cache == "dual":
                    rows = block
                logits = self.forward(ids, rows, store)
                if self.shifted:
                    logits = torch.cat((logits[:1], logits[:-1]))
                logits = logits[first - rows.start :][: len(block)].double()
                open_ = [i for i in range(len(block)) if masked[first + i]]
                if self.shifted and cache != "none" and step == 0 and open_[0] == 0:
                    token, chosen = logits.argmax(-1), [0]
                else:
                    asked = steps or len(block)
                    token, chosen = select(
                        logits, open_, len(block), step, asked, algorithm, threshold, self.mask_id, **how
                    )
                for i in chosen:
                    ids[first + i] = int(token[i])
                    masked[first + i] = False
                    unmasked[first + i] = total
                step += 1
                total += 1
        return Decoded(ids[len(prompt) :], total, unmasked[len(prompt) :])


class LladaReference(BidirectionalReference):
    """``LLaDAModelLM``."""

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self.config = json.loads((folder / "config.json").read_text())
        weights = load_file(folder / "model.safetensors")
        self.weights = {
            name.removeprefix("model.transformer."): tensor.float() for name, tensor in weights.items()
        }
        self.mask_id = self.config["mask_token_id"]

    def forward(self, ids: list[int], rows: range, store: Store) -> torch.Tensor:
        """See :meth:`BidirectionalReference.forward`."""
        config, weights = self.config, self.weights
        heads, eps = config["n_heads"], config["rms_norm_eps"]
        size = config["d_model"] // heads
        position = torch.arange(rows.start, rows.stop)
        cos, sin = rotary(position, size, config)
        x = weights["wte.weight"][torch.tensor(ids)[position]]
        for layer in range(config["n_layers"]):
            w = f"blocks.{layer}."
            h = rms_norm(x, weights[w + "attn_norm.weight"], eps)
            q, k, v = (
                linear(weights, f"{w}{name}_proj", h).view(len(rows), -1, size).transpose(0, 1)
                for name in "qkv"
            )
            if layer == len(store):
                shape = (len(k), len(ids), size)
                store.append((torch.zeros(shape), torch.zeros(shape)))
            keys, values = store[layer]
            keys[:, position], values[:, position] = rotate(k, cos, sin), v
            group = heads // len(keys)
            a = scaled_dot_product_attention(
                rotate(q, cos, sin), keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
            )
            a = a.transpose(0, 1).reshape(len(rows), heads * size)
            x = x + a @ weights[w + "attn_out.weight"].T
            h = rms_norm(x, weights[w + "ff_norm.weight"], eps)
            gate = silu(h @ weights[w + "ff_proj.weight"].T)
            up = h @ weights[w + "up_proj.weight"].T
            x = x + (gate * up) @ weights[w + "ff_out.weight"].T
        head = weights["wte.weight"] if config["weight_tying"] else weights["ff_out.weight"]
        logits = rms_norm(x, weights["ln_f.weight"], eps) @ head.T
        return logits / config["d_model"] ** 0.5 if config["scale_logits"] else logits


class GuidedReference(BidirectionalReference):
    """A model beside itself with its prompt masked (LLaDA's ``cfg_scale``)."""

    def __init__(self, model: BidirectionalReference, scale: float, prompt_length: int) -> None:
        self.model, self.scale, self.prompt_length = model, scale, prompt_length
        self.mask_id, self.shifted = model.mask_id, model.shifted

    def forward(self, ids: list[int], rows: range, store: Store) -> torch.Tensor:
        """See :meth:`BidirectionalReference.forward`."""
        given = self.model.forward(ids, rows, store)
        blank = [self.mask_id] * self.prompt_length + ids[self.prompt_length :]
        without = self.model.forward(blank, rows, [])
        return without + (self.scale + 1) * (given - without)


class LayeredReference(BidirectionalReference):
    """Weights under ``model.layers``, as Qwen's and most models' are."""

    mask_id_default: int | None = None

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self.config = json.loads((folder / "config.json").read_text())
        self.weights: dict[str, torch.Tensor] = {}
        for shard in folder.glob("*.safetensors"):
            self.weights |= {name: tensor.float() for name, tensor in load_file(shard).items()}
        self.mask_id = self.config.get("mask_token_id", self.mask_id_default)
        self.size = (
            self.config.get("head_dim") or self.config["hidden_size"] // self.config["num_attention_heads"]
        )

    def projected(self, name: str, h: torch.Tensor) -> Iterator[torch.Tensor]:
        """Queries, keys and values before the rotation, each ``[tokens, heads, size]``."""
        for part in "qkv":
            yield self._linear(f"{name}{part}_proj", h).unflatten(1, (-1, self.size))  # type: ignore[no-untyped-call]

    def mix(self, layer: int, name: str, h: torch.Tensor) -> torch.Tensor:
        """What a layer adds after attention."""
        return self._network(name, h)

    def forward(self, ids: list[int], rows: range, store: Store) -> torch.Tensor:
        """See :meth:`BidirectionalReference.forward`."""
        config = self.config
        position = torch.arange(rows.start, rows.stop)
        cos, sin = rotary(position, self.size, config)
        x = self.weights["model.embed_tokens.weight"][torch.tensor(ids)[position]]
        for layer in range(config["num_hidden_layers"]):
            w = f"model.layers.{layer}."
            h = self._norm(w + "input_layernorm", x)
            q, k, v = (part.transpose(0, 1) for part in self.projected(w + "self_attn.", h))
            if layer == len(store):
                shape = (len(k), len(ids), self.size)
                store.append((torch.zeros(shape), torch.zeros(shape)))
            keys, values = store[layer]
            keys[:, position], values[:, position] = rotate(k, cos, sin), v
            group = len(q) // len(k)
            a = scaled_dot_product_attention(
                rotate(q, cos, sin), keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
            )
            x = x + self._linear(w + "self_attn.o_proj", a.transpose(0, 1).reshape(len(rows), -1))
            x = x + self.mix(layer, w + "mlp.", self._norm(w + "post_attention_layernorm", x))
        x = self._norm("model.norm", x)
        return self._linear("model.embed_tokens" if config["tie_word_embeddings"] else "lm_head", x)

    def _network(self, name: str, h: torch.Tensor) -> torch.Tensor:
        inner = silu(self._linear(name + "gate_proj", h)) * self._linear(name + "up_proj", h)
        return self._linear(name + "down_proj", inner)

    def _linear(self, name: str, h: torch.Tensor) -> torch.Tensor:
        return linear(self.weights, name, h)

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weights[name + ".weight"], self.config["rms_norm_eps"])


class A2dReference(LayeredReference):
    """A2D: the layers of Qwen3, whose queries and keys have norms, of Qwen2 or of Llama."""

    mask_id_default = 508

    def projected(self, name: str, h: torch.Tensor) -> Iterator[torch.Tensor]:
        """See :meth:`LayeredReference.projected`."""
        for part, x in zip("qkv", super().projected(name, h), strict=True):
            norm = f"{name}{part}_norm"
            yield self._norm(norm, x) if f"{norm}.weight" in self.weights else x


class DreamReference(LayeredReference):
    """``DreamModel``: Qwen2.5's layers."""

    shifted = True


class LladaMoeReference(LayeredReference):
    """``LLaDAMoEModelLM``: one expert after the other."""

    mask_id_default = 156895

    def projected(self, name: str, h: torch.Tensor) -> Iterator[torch.Tensor]:
        """See :meth:`LayeredReference.projected`: normed, then clipped."""
        for part, x in zip("qkv", super().projected(name, h), strict=True):
            if self.config["qk_layernorm"] and part in "qk":
                x = self._norm(f"{name}{part}_norm", x)
            limit = self.config.get("clip_qkv")
            yield x if limit is None else x.clamp(-limit, limit)

    def mix(self, layer: int, name: str, h: torch.Tensor) -> torch.Tensor:
        """See :meth:`LayeredReference.mix`."""
        if self.config["moe_layer_freq"][layer] == 0:
            return self._network(name, h)
        weight, chosen = self._linear(name + "gate", h).softmax(-1).topk(self.config["num_experts_per_tok"])
        if self.config["norm_topk_prob"]:
            weight = weight / weight.sum(-1, keepdim=True)
        total = torch.zeros_like(h)
        for expert in range(self.config["num_experts"]):
            rows, place = (chosen == expert).nonzero(as_tuple=True)
            part = self._network(f"{name}experts.{expert}.", h[rows])
            total[rows] += part * weight[rows, place, None]
        return total


def select(
    logits: torch.Tensor,
    open_: list[int],
    length: int,
    step: int,
    steps: int,
    algorithm: str,
    threshold: float | None,
    mask_id: int,
    eps: float = 1e-3,
    top_k: int = 0,
) -> tuple[torch.Tensor, list[int]]:
    """What a step writes: the block's tokens, and which of the open positions take theirs."""
    choice = logits.clone()
    choice[:, mask_id] = -torch.inf
    if top_k:
        kept = choice.topk(top_k, dim=-1).values[:, -1:]
        logits = choice = choice.masked_fill(choice < kept, -torch.inf)
    token = choice.argmax(-1)
    p = logits.softmax(-1)
    score = p.gather(1, token[:, None])[:, 0]
    if algorithm == "entropy":
        score = (p * (p + 1e-10).log()).sum(-1)
    elif algorithm == "topk_margin":
        best_two = choice.softmax(-1).topk(2, dim=-1).indices
        score = p.gather(1, best_two[:, :1])[:, 0] - p.gather(1, best_two[:, 1:])[:, 0]
    best = sorted(open_, key=lambda i: (-float(score[i]), i))
    falling = score[best]
    if algorithm in ("entropy", "maskgit_plus", "topk_margin"):
        times = torch.linspace(1, eps, steps + 1)
        n = int(torch.tensor(float(len(best))) * (1 - times[step + 1] / times[step]))
        return token, best if step == steps - 1 else best[:n]
    if algorithm == "confidence_threshold":
        assert threshold is not None
        allowed = best[: length // steps * (step + 1) - (length - len(open_))]
        return token, [i for n, i in enumerate(allowed) if n == 0 or score[i] >= threshold]
    n = max(1, length // steps + (step < length % steps))
    return token, best[: count(algorithm, falling, n, threshold)]


def count(algorithm: str, falling: torch.Tensor, n: int, threshold: float | None) -> int:
    """How many of the best positions a step unmasks, by falling confidence."""
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
