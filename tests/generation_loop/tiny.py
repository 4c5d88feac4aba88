# SPDX-License-Identifier: Apache-2.0
"""A tiny autoregressive checkpoint: a Qwen3 with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

VOCABULARY = 256


def make_qwen3(folder: Path) -> str:
    """Writes the checkpoint, float32, without a tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        initializer_range=0.2,  # Far from uniform: ids are no matter of rounding.
    )
    model: Any = Qwen3ForCausalLM
    model(config).float().save_pretrained(folder)
    return str(folder)
