# SPDX-License-Identifier: Apache-2.0
"""Configuration of WeDLM models."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig, Qwen3Config

QWEN3, QWEN2 = "WeDLMForCausalLM", "WeDLMQwen2ForCausalLM"
"""The published architecture, and what a checkpoint of Qwen2.5's layers is called here."""


class WeDLMConfig(Qwen3Config):  # type: ignore[no-untyped-call]
    """Qwen3's configuration; ``mask_token_id`` and ``qk_norm`` are kept as given."""

    model_type = "wedlm"

    def __post_init__(self, **kwargs: Any) -> None:
        """Takes the members of ``config.json`` that have no field.

        Raises:
            ValueError: The file describes neither Qwen3's layers nor Qwen2.5's.
        """
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        if self.architectures == [QWEN2] and not self.attention_bias:
            raise ValueError(
                f"{self.model_type}: attention_bias={self.attention_bias!r} without qk_norm is not known: "
                "the layers are Qwen3's (qk_norm) or Qwen2.5's (attention_bias)."
            )

    @classmethod
    def from_dict(  # type: ignore[override]
        cls, config_dict: dict[str, Any], **kwargs: Any
    ) -> PretrainedConfig:
        """Reads a ``config.json``; one without norms of queries and keys is of Qwen2.5's layers."""
        if config_dict.get("architectures") == [QWEN3] and not config_dict.get("qk_norm"):
            # Where the file does not say it, Qwen3's configuration would give its own default.
            head_dim = config_dict.get("hidden_size", 0) // config_dict.get("num_attention_heads", 1)
            config_dict = {"head_dim": head_dim} | config_dict | {"architectures": [QWEN2]}
        return super().from_dict(config_dict, **kwargs)
