# SPDX-License-Identifier: Apache-2.0
"""DiffusionGemma's text network: Gemma 4's backbone in two modes.

Prompts and finished canvases pass causally and write keys and values; open canvases pass
bidirectionally. Both use the same layers. A row of an open canvas enters through the
self-conditioning block, all other rows as plain embeddings. The ``renoising_diffusion``
generation loop says which row is which (``vllm/v1/diffusion``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from vllm.config import VllmConfig
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.models.complete_weights import listed
from vllm.model_executor.models.gemma4 import Gemma4ForCausalLM, Gemma4MLP
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper

_ENCODER = "model.encoder.language_model.layers."
_DECODER = "model.decoder.layers."
_SCALAR = ".layer_scalar"
_OUTER = (
    "embed_tokens",
    "norm",
    *(f"self_conditioning.{part}" for part in ("pre_norm", "gate_proj", "up_proj", "down_proj")),
)
"""Modules of the decoder that have weights, beside its layers."""
_INNER = (
    *(f"self_attn.{part}" for part in ("q_proj", "k_proj", "o_proj", "q_norm", "k_norm")),
    *(f"mlp.{part}" for part in ("gate_proj", "up_proj", "down_proj")),
    *("router.proj", "router.scale", "router.per_expert_scale", "experts"),
    *("input_layernorm", "post_attention_layernorm", "layer_scalar"),
    *("pre_feedforward_layernorm", "pre_feedforward_layernorm_2"),
    *(f"post_feedforward_layernorm{number}" for number in ("", "_1", "_2")),
)
"""The same of a layer."""


class SelfConditioning(nn.Module):
    """Adds what the step before predicted to the embeddings of an open canvas."""

    def __init__(self, hidden_size: int, intermediate_size: int, eps: float) -> None:
        """Makes the block; its layers are not quantised.

        Args:
            hidden_size: Width of the embeddings.
            intermediate_size: Width of the gated MLP.
            eps: Of the norms.
        """
        super().__init__()
        self.pre_norm = RMSNorm(hidden_size, eps=eps)
        self.mlp = Gemma4MLP(hidden_size, intermediate_size, "gelu_pytorch_tanh", prefix="self_conditioning")
        self.post_norm = RMSNorm(hidden_size, eps=eps, has_weight=False)

    def forward(self, embeddings: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        """The rows' inputs, ``[rows, hidden]``.

        Args:
            embeddings: Scaled embeddings of the canvas's tokens.
            predicted: Expected scaled embedding under the step before's distribution; zeros in a
                canvas's first step, which is not the identity: the sum is normalised all the same.
        """
        output: torch.Tensor = self.post_norm(embeddings + self.mlp(self.pre_norm(predicted)))
        return output


class DiffusionGemmaForBlockDiffusion(Gemma4ForCausalLM):
    """``DiffusionGemmaForBlockDiffusion`` checkpoints, text only.

    ``compute_logits`` gives the head's output in the model's dtype: the sampler soft-caps it in
    float32, a part of the rows at a time.
    """

    _complete = False

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            "model.encoder.vision_tower.": None,
            "model.encoder.embed_vision.": None,
            "model.decoder.self_conditioning.": "self_conditioning.",
            "model.decoder.": "model.",
            _ENCODER: None,
            "lm_head.": None,
        },
        orig_to_new_stacked={
            "self_conditioning.gate_proj.": ("self_conditioning.mlp.gate_up_proj.", 0),
            "self_conditioning.up_proj.": ("self_conditioning.mlp.gate_up_proj.", 1),
        },
        orig_to_new_substr={"self_conditioning.down_proj.": "self_conditioning.mlp.down_proj."},
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = vllm_config.model_config.hf_config
        text = vllm_config.model_config.hf_text_config
        self.soft_cap: float | None = text.final_logit_softcapping
        self.logits_processor = LogitsProcessor(text.vocab_size)
        size = getattr(config, "self_conditioning_size", None) or text.intermediate_size
        self.self_conditioning = SelfConditioning(text.hidden_size, size, text.rms_norm_eps)

    def canvas_inputs(self, embeddings: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        """Inputs of rows of open canvases; see :class:`SelfConditioning`."""
        output: torch.Tensor = self.self_conditioning(embeddings, predicted)
        return output

    def expected_embeddings(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Expected scaled embedding of rows, ``[rows, hidden]``, in the model's dtype.

        Args:
            probabilities: Of the whole vocabulary, ``[rows, V]``.
        """
        embedding: Any = self.model.embed_tokens
        shard = embedding.shard_indices
        first, last = shard.org_vocab_start_index, shard.org_vocab_end_index
        weight = embedding.weight[: last - first]
        expected = probabilities[:, first:last].to(weight.dtype) @ weight
        if shard.num_org_elements < probabilities.shape[1]:
            expected = tensor_model_parallel_all_reduce(expected)
        normalizer: Any = self.model.normalizer
        scaled: torch.Tensor = expected * normalizer
        return scaled

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Loads a checkpoint; the first time all of it, later any part.

        Raises:
            ValueError: A weight is missing, or a layer's two scalars differ.
        """
        scalars: dict[str, dict[str, torch.Tensor]] = {_ENCODER: {}, _DECODER: {}}
        seen: set[str] = set()
        loader = AutoWeightsLoader(self)
        loaded: set[str] = loader.load_weights(_noted(weights, scalars, seen), mapper=self.hf_to_vllm_mapper)
        if not self._complete and seen:
            layers = range(self.model.start_layer, self.model.end_layer)
            if missing := missing_modules(seen, layers, self.config.layer_types):
                raise ValueError(f"The checkpoint lacks weights of the model: {listed(missing)}.")
            self._complete = True
            self._check_scalars(scalars[_ENCODER], scalars[_DECODER])
        return loaded

    def _check_scalars(self, encoder: dict[str, torch.Tensor], decoder: dict[str, torch.Tensor]) -> None:
        """Refuses what one scalar per layer cannot stand for."""
        for layer in map(str, range(self.model.start_layer, self.model.end_layer)):
            if layer in encoder and not torch.equal(encoder[layer], decoder[layer]):
                raise ValueError(
                    f"{_ENCODER}{layer}{_SCALAR}={encoder[layer].item():g} and "
                    f"{_DECODER}{layer}{_SCALAR}={decoder[layer].item():g} differ: checkpoints whose causal "
                    "passes have scalars of their own are not supported."
                )


def missing_modules(names: Iterable[str], layers: Iterable[int], layer_types: Sequence[str]) -> list[str]:
    """Modules of the text network of which a checkpoint holds nothing, by their published names.

    Args:
        names: Of the checkpoint's tensors.
        layers: Numbers of the layers that are wanted.
        layer_types: What each layer of the network attends to; those that attend to everything take their
            values from the keys' projection.
    """
    held = {name.rpartition(".")[0] for name in names} | {*names}
    held |= {name.partition(".experts.")[0] + ".experts" for name in held if ".experts." in name}
    wanted = [f"model.decoder.{part}" for part in _OUTER]
    for layer in layers:
        parts = _INNER if layer_types[layer] == "full_attention" else (*_INNER, "self_attn.v_proj")
        wanted += [f"{_DECODER}{layer}.{part}" for part in parts]
    return [name for name in wanted if name not in held]


def _noted(
    weights: Iterable[tuple[str, torch.Tensor]],
    scalars: dict[str, dict[str, torch.Tensor]],
    seen: set[str],
) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights, their names noted, and the layers' scalars by their prefix and layer."""
    for name, weight in weights:
        seen.add(name)
        for prefix, found in scalars.items():
            if name.startswith(prefix) and name.endswith(_SCALAR):
                found[name[len(prefix) : -len(_SCALAR)]] = weight.detach().cpu().clone()
        yield name, weight
