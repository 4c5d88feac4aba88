# SPDX-License-Identifier: Apache-2.0
"""Configuration of Nemotron-Labs-Diffusion models."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class NemotronLabsDiffusionConfig(PretrainedConfig):
    """Nemotron-Labs-Diffusion; the values are those of the 8B.

    ``block_size``, ``mask_token_id`` and ``ar_mode`` are kept where the file has them. Layers that the
    network has not are refused by ``vllm.v1.diffusion.checkpoint.known_fields``.
    """

    model_type = "nemotron_labs_diffusion"

    vocab_size: int = 131072
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 34
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 262144
    rms_norm_eps: float = 1e-5
    rope_parameters: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    dlm_paradigm: str | None = "bidirectional"
    sliding_window: int | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **kwargs: Any) -> None:
        """Takes the members of ``config.json`` that have no field.

        Raises:
            ValueError: The file scales queries by their position and does not say from which on.
        """
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        rope: dict[str, Any] = self.rope_parameters or {}
        beta, length = rope.get("llama_4_scaling_beta"), rope.get("original_max_position_embeddings")
        if beta:
            if not length:
                raise ValueError(
                    f"{self.model_type}: llama_4_scaling_beta={beta} needs original_max_position_embeddings "
                    "among the rope_parameters."
                )
            # What the backbone calls it: queries grow with the logarithm of their position.
            self.llama_4_scaling = {"original_max_position_embeddings": length, "beta": beta}
