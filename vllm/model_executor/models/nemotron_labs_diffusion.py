# SPDX-License-Identifier: Apache-2.0
"""Nemotron-Labs-Diffusion: a Ministral backbone that writes causally or denoises blocks.

The weights' names differ from Mistral's. Queries are scaled by their position and the rotary
embedding is YaRN's, both as upstream's Mistral has them. Which rows see which keys is the
generation loop's to say.
"""

import re
from collections.abc import Iterable

import torch

from vllm.model_executor.models.complete_weights import CompleteWeights
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.utils import WeightsMapper

_END = r"(?=\.|$)"
"""Of a module's name: a weight's goes on, a quantisation configuration's does not."""
_NAMES = WeightsMapper(
    orig_to_new_regex={
        re.compile(r"^encoder" + _END): "model",
        re.compile(r"^diffusion_head" + _END): "lm_head",
    }
)


class NemotronLabsDiffusionModel(CompleteWeights, MistralForCausalLM):
    """``NemotronLabsDiffusionModel`` checkpoints (3B, 8B and their bases)."""

    hf_to_vllm_mapper = _NAMES | MistralForCausalLM.hf_to_vllm_mapper

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Loads a checkpoint in the published layout."""
        loaded: set[str] = super().load_weights(_NAMES.apply(weights))
        return loaded
