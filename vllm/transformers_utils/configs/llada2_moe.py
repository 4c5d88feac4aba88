# SPDX-License-Identifier: Apache-2.0
"""Configuration of LLaDA2 models."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class LLaDA2MoeConfig(PretrainedConfig):
    """LLaDA2.0, 2.1 and 2.2; the values are those of 2.0's mini size.

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
    expert_capacity: int | None = None
    delete_token_id: int | None = None
    split_token_id: int | None = None
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
        self._check_routing()
        self._check_edits()

    @classmethod
    def from_dict(  # type: ignore[override]
        cls, config_dict: dict[str, Any], **kwargs: Any
    ) -> PretrainedConfig:
        """Reads a ``config.json``; a checkpoint that inserts and deletes tokens has a family of its own."""
        edits = [config_dict.get(name) for name in ("delete_token_id", "split_token_id")]
        if any(one is not None for one in edits):
            config_dict = config_dict | {"architectures": ["LLaDA22MoeModelLM"]}
        return super().from_dict(config_dict, **kwargs)

    def _check_routing(self) -> None:
        """Checks what a block's pool of experts needs."""
        capacity, block = self.expert_capacity, getattr(self, "block_size", None)
        if capacity is None:
            return
        if not self.num_experts_per_tok <= capacity <= self.num_experts:
            raise ValueError(
                f"{self.model_type}: expert_capacity={capacity} must be from "
                f"num_experts_per_tok={self.num_experts_per_tok} to num_experts={self.num_experts}."
            )
        if not isinstance(block, int) or block < 1:
            raise ValueError(
                f"{self.model_type}: expert_capacity={capacity} needs block_size, the tokens that share a "
                f"pool of experts; block_size={block!r} is given."
            )

    def _check_edits(self) -> None:
        """Checks the ids by which tokens are deleted and inserted."""
        edits = {"delete_token_id": self.delete_token_id, "split_token_id": self.split_token_id}
        if all(one is None for one in edits.values()):
            return
        taken = {getattr(self, "mask_token_id", None): "mask_token_id"}
        for name, one in edits.items():
            if one is None or not 0 <= one < self.vocab_size:
                raise ValueError(
                    f"{self.model_type}: {name}={one!r} must be an id of the vocabulary of {self.vocab_size} "
                    f"tokens, since {', '.join(n for n, i in edits.items() if i is not None)} is given."
                )
            if one in taken:
                raise ValueError(f"{self.model_type}: {name}={one} is {taken[one]} too.")
            taken[one] = name
