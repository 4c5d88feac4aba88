# SPDX-License-Identifier: Apache-2.0
"""Configuration of LLaDA models with experts."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

_KNOWN: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False, None),
    "hidden_act": ("silu",),
    "moe_router_enable_expert_bias": (False, None),
    "moe_router_score_function": ("softmax", None),
    "routed_scaling_factor": (1, None),
    "shared_expert_intermediate_size": (0, None),
    "tie_word_embeddings": (False,),
}
"""What the family's checkpoints say of layers that exist in one form only."""


class LLaDAMoEConfig(PretrainedConfig):
    """LLaDA-MoE; the values are those of 7B-A1B. ``mask_token_id`` is kept as given."""

    model_type = "lladamoe"

    vocab_size: int = 157184
    hidden_size: int = 2048
    dense_intermediate_size: int = 8192
    expert_intermediate_size: int = 1024
    shared_expert_intermediate_size: int | None = None
    num_hidden_layers: int = 16
    num_attention_heads: int = 16
    num_key_value_heads: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-5
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: float = 1.0
    attention_bias: bool | None = False
    clip_qkv: float | None = None
    qk_layernorm: bool | None = True
    num_experts: int = 64
    num_experts_per_tok: int = 8
    norm_topk_prob: bool | None = None
    moe_layer_freq: list[int] | int = 1
    moe_router_enable_expert_bias: bool | None = False
    moe_router_score_function: str | None = "softmax"
    routed_scaling_factor: float | None = 1.0
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Takes the members of ``config.json`` that have no field.

        Raises:
            ValueError: The file describes a layer that the family does not have.
        """
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        for name, known in _KNOWN.items():
            if (given := getattr(self, name)) not in known:
                raise ValueError(f"{self.model_type}: {name}={given!r} is not known; only {known[0]!r} is.")
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if isinstance(self.moe_layer_freq, int):
            self.moe_layer_freq = [self.moe_layer_freq] * self.num_hidden_layers
        if len(self.moe_layer_freq) != self.num_hidden_layers:
            raise ValueError(
                f"{self.model_type}: moe_layer_freq has {len(self.moe_layer_freq)} entries; "
                f"it must have one for each of the {self.num_hidden_layers} layers."
            )
        # What the backbone calls it.
        self.intermediate_size = self.expert_intermediate_size
