# SPDX-License-Identifier: Apache-2.0
"""The model: SDAR's network with capped logits."""

import torch

from vllm.config import VllmConfig
from vllm.model_executor.models.sdar import SDARForCausalLM


class CappedForCausalLM(SDARForCausalLM):
    """SDAR with ``logit_cap * tanh(logits / logit_cap)``, ``logit_cap`` being in ``config.json``."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.logit_cap: float = vllm_config.model_config.hf_config.logit_cap

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        logits = super().compute_logits(hidden_states)
        assert logits is not None  # It is only where ranks do not gather.
        return torch.tanh(logits / self.logit_cap) * self.logit_cap
