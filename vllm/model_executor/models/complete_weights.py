# SPDX-License-Identifier: Apache-2.0
"""Checks that a checkpoint has every weight of its model.

Upstream checks only weights that no quantisation method prepares, which every linear layer and
embedding has: a checkpoint without one starts from uninitialised memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vllm.config import VllmConfig
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.model_executor.models.utils import WeightsMapper

_HEAD = "lm_head.weight"
_PACKED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
_EXPERT = ("gate_proj", "up_proj", "down_proj")
_PLAIN = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
_SHOWN = 8
"""Names that an error lists."""


class CompleteWeights(nn.Module):
    """A model's first base: it looks at the names that pass, and loads nothing itself."""

    _complete = False

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", **own: Any) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, **own)
        # Upstream gives a head of its own to a tied model whose checkpoint has one.
        self._untied = bool(vllm_config.model_config.word_embeddings_untied_by_checkpoint)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Loads a checkpoint; the first time all of it, later any part.

        Args:
            weights: Names as published, and tensors.

        Returns:
            Names of the parameters that were loaded.

        Raises:
            ValueError: A weight is missing, or the network has no place for a bias.
        """
        seen: set[str] = set()
        load: Any = super().load_weights  # type: ignore[misc]
        loaded: set[str] = load(self._watched(weights, seen))
        if not self._complete and seen:
            check_weights(self, seen)
            self._complete = True
        return loaded

    def _watched(
        self, weights: Iterable[tuple[str, torch.Tensor]], seen: set[str]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Notes the names; gives a tied head's weight to the embedding too, where only the head has it."""
        mapper = getattr(self, "hf_to_vllm_mapper", WeightsMapper())
        unstacked = replace(mapper, orig_to_new_stacked={})
        tied, head = _tied_embedding(self), None
        embedding = _embedding(self) if self._untied else tied
        for name, tensor in weights:
            own = unstacked.map_name(name)
            if own is None:
                continue
            seen.add(own)
            if embedding is not None and own == _HEAD:
                head = tensor
                if tied is not None:
                    continue
            yield name, tensor
        if head is not None and embedding not in seen:
            seen.add(str(embedding))
            yield str(embedding), head


def check_weights(model: nn.Module, seen: set[str]) -> None:
    """Checks a model's modules on this rank against a checkpoint's names.

    Args:
        model: The model, loaded.
        seen: The checkpoint's names, in the model's spelling, layers that the model fuses apart.

    Raises:
        ValueError: As :meth:`CompleteWeights.load_weights`.
    """
    parents = {name.rpartition(".")[0] for name in seen}
    tied = _tied_embedding(model) is not None
    missing: list[str] = []
    unread: list[str] = []
    for path, module in model.named_modules():
        names = [name for name, _ in module.named_parameters(recurse=False)]
        if isinstance(module, RoutedExperts):
            layers = _expert_layers(path, module, parents)
            missing += [layer for layer in layers if layer not in parents]
            if not any(name.endswith("bias") for name in names):
                unread += [f"{layer}.bias" for layer in layers if f"{layer}.bias" in seen]
        elif not names or (tied and isinstance(module, ParallelLMHead)):
            continue
        elif (method := getattr(module, "quant_method", None)) is None or isinstance(method, _PLAIN):
            for source in _sources(model, path):
                missing += [f"{source}.{name}" for name in names if f"{source}.{name}" not in seen]
                if isinstance(module, LinearBase) and "bias" not in names and f"{source}.bias" in seen:
                    unread.append(f"{source}.bias")
        elif isinstance(module, LinearBase | VocabParallelEmbedding):
            # Which tensors a quantised layer has is its method's to know: here, whether it has any.
            missing += [source for source in _sources(model, path) if source not in parents]
    if missing:
        raise ValueError(f"The checkpoint lacks weights of the model: {listed(missing)}.")
    if unread:
        raise ValueError(
            f"The checkpoint has biases that the model its config.json describes has not: {listed(unread)}."
        )


def _tied_embedding(model: nn.Module) -> str | None:
    """Name of the embedding's weight, where the head shares it."""
    head = getattr(model, "lm_head", None)
    weight = getattr(head, "weight", None)
    if weight is None:
        return None
    for path, module in model.named_modules():
        if isinstance(module, VocabParallelEmbedding) and module is not head and module.weight is weight:
            return f"{path}.weight"
    return None


def _embedding(model: nn.Module) -> str | None:
    """Name of the embedding's weight, if it is on this rank."""
    for path, module in model.named_modules():
        if isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead):
            return f"{path}.weight"
    return None


def _sources(model: nn.Module, path: str) -> list[str]:
    """The published layers that a module holds."""
    parent, _, own = path.rpartition(".")
    packed = _PACKED | getattr(model, "packed_modules_mapping", {})
    return [f"{parent}.{part}" if parent else part for part in packed.get(own, [own])]


def _expert_layers(path: str, experts: RoutedExperts, parents: set[str]) -> list[str]:
    """The published layers of this rank's experts."""
    path = path.removesuffix(".routed_experts")
    if f"{path}.gate_up_proj" in parents or path in parents:
        return []  # All experts in one tensor.
    where = getattr(experts, "_expert_map", None)
    mine = range(experts.global_num_experts) if where is None else (where >= 0).nonzero().flatten().tolist()
    return [f"{path}.{expert}.{layer}" for expert in mine for layer in _EXPERT]


def listed(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
