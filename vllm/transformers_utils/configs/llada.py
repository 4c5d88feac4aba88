# SPDX-License-Identifier: Apache-2.0
"""Configuration of LLaDA models."""

from typing import Any

from transformers import LlamaConfig, PretrainedConfig

from vllm.transformers_utils.configs.llada_moe import LLaDAMoEConfig

_NAMES = {
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "n_layers": "num_hidden_layers",
    "mlp_hidden_size": "intermediate_size",
    "max_sequence_length": "max_position_embeddings",
    "weight_tying": "tie_word_embeddings",
    "activation_type": "hidden_act",
    "include_qkv_bias": "attention_bias",
    "include_bias": "mlp_bias",
}
"""What LLaDA's published configuration calls a field -> what Llama's does."""


class LLaDAConfig(LlamaConfig):  # type: ignore[no-untyped-call]
    """LLaDA's published fields under Llama's names; the rest is kept as given."""

    model_type = "llada"

    def __init__(self, **kwargs: Any) -> None:
        """Translates the names; see ``LlamaConfig``."""
        for theirs, ours in _NAMES.items():
            if theirs in kwargs:
                kwargs[ours] = kwargs.pop(theirs)
        super().__init__(**kwargs)

    @classmethod
    def from_dict(  # type: ignore[override]
        cls, config_dict: dict[str, Any], **kwargs: Any
    ) -> PretrainedConfig:
        """Reads a ``config.json``; LLaDA-MoE's says ``llada`` too, and has experts."""
        if config_dict.get("num_experts") is None:
            return super().from_dict(config_dict, **kwargs)
        return LLaDAMoEConfig.from_dict(config_dict | {"model_type": LLaDAMoEConfig.model_type}, **kwargs)
