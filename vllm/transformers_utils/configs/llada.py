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
    "embedding_size": "vocab_size",
    "include_qkv_bias": "qkv_bias",
}
"""What LLaDA's published configuration calls a field -> what Llama's does."""

_KNOWN: dict[str, tuple[Any, ...]] = {
    "activation_type": ("silu",),
    "alibi": (False, None),
    "attention_layer_norm": (False, None),
    "bias_for_layer_norm": (False, None),
    "block_group_size": (1, None),
    "block_type": ("llama",),
    "include_bias": (False, None),
    "input_emb_norm": (False, None),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True, None),
    "rope": (True,),
}
"""What the family's checkpoints say of layers that exist in one form only."""


class LLaDAConfig(LlamaConfig):  # type: ignore[no-untyped-call]
    """LLaDA's published fields under Llama's names; the rest is kept as given."""

    model_type = "llada"

    def __init__(self, **kwargs: Any) -> None:
        """Translates the names; see ``LlamaConfig``.

        Raises:
            ValueError: The file describes a layer that the family does not have.
        """
        for name, known in _KNOWN.items():
            if (given := kwargs.get(name, known[0])) not in known:
                raise ValueError(f"{self.model_type}: {name}={given!r} is not known; only {known[0]!r} is.")
        for theirs, ours in _NAMES.items():
            if (given := kwargs.pop(theirs, None)) is not None:
                kwargs[ours] = given
        # What is not set follows from the rest, as in the published network.
        kwargs.setdefault("rms_norm_eps", 1e-5)
        width, ratio = kwargs.get("hidden_size"), kwargs.get("mlp_ratio")
        if width is not None and ratio is not None:
            kwargs.setdefault("intermediate_size", ratio * width)
        if kwargs.get("multi_query_attention"):
            kwargs.setdefault("num_key_value_heads", 1)
        if kwargs.get("scale_logits"):
            kwargs["logit_scale"] = kwargs["hidden_size"] ** -0.5
        super().__init__(**kwargs)

    @classmethod
    def from_dict(  # type: ignore[override]
        cls, config_dict: dict[str, Any], **kwargs: Any
    ) -> PretrainedConfig:
        """Reads a ``config.json``; LLaDA-MoE's says ``llada`` too, and has experts."""
        if config_dict.get("num_experts") is None:
            return super().from_dict(config_dict, **kwargs)
        return LLaDAMoEConfig.from_dict(config_dict | {"model_type": LLaDAMoEConfig.model_type}, **kwargs)
