# SPDX-License-Identifier: Apache-2.0
"""Configuration of LLaDA2 models."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class LLaDA2MoeConfig(PretrainedConfig):
    """LLaDA2.0 and 2.1; the values are those of the mini size.

    ``block_size`` and ``mask_token_id`` are kept where the file has them.
    """

    model_type = "llada2_moe"

    vocab_size: int = 157184
    hidden_size: int = 2048
    intermediate_size: int = 5120
    num_hidden_layers: int = 20
    num_attention_heads: int = 16
    num_key_value_heads: int = 4
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: float = 0.5
    tie_word_embeddings: bool = False
    use_bias: bool = False
    use_qkv_bias: bool = False
    use_qk_norm: bool = True
    num_experts: int = 256
    num_experts_per_tok: int = 8
    num_shared_experts: int | None = 1
    n_group: int = 8
    topk_group: int = 4
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.5
    moe_intermediate_size: int = 512
    first_k_dense_replace: int = 1
    embedding_dropout: float = 0.0
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Takes the members of ``config.json`` that have no field.

        The published model knows one router (sigmoid scores, a bias for the choice,
        all in float32), one norm and no sliding window, whatever the file says of
        them; so what the backbone would read of them is set here.

        Raises:
            ValueError: The file describes a layer that the family does not have.
        """
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        for name, known in (("hidden_act", "silu"), ("norm_topk_prob", True), ("use_bias", False)):
            if (given := getattr(self, name)) != known:
                raise ValueError(f"{self.model_type}: {name}={given!r} is not known; only {known!r} is.")
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        self.rotary_dim = int(self.head_dim * self.partial_rotary_factor)
        self.use_rmsnorm = True
        self.score_function = "sigmoid"
        self.moe_router_enable_expert_bias = True
        self.router_dtype = "fp32"
        self.num_shared_experts = self.num_shared_experts or 0
        self.norm_head = False
        self.sliding_window = None
