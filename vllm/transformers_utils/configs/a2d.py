# SPDX-License-Identifier: Apache-2.0
"""Configurations of A2D models: their backbones', whose attention sees all layers in full."""

from typing import Any

from transformers import LlamaConfig, Qwen2Config, Qwen3Config


class _FullAttention:
    """The published networks have no sliding window, whatever the file says of one."""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[misc]
        self.use_sliding_window = False
        self.sliding_window = None
        self.layer_types = ["full_attention"] * self.num_hidden_layers  # type: ignore[attr-defined]


class A2DQwen3Config(_FullAttention, Qwen3Config):  # type: ignore[misc, no-untyped-call]
    """Qwen3's configuration."""

    model_type = "a2d-qwen3"


class A2DQwen2Config(_FullAttention, Qwen2Config):  # type: ignore[misc, no-untyped-call]
    """Qwen2's configuration."""

    model_type = "a2d-qwen2"


class A2DLlamaConfig(LlamaConfig):  # type: ignore[no-untyped-call]
    """Llama's configuration."""

    model_type = "a2d-llama"
