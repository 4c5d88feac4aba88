# SPDX-License-Identifier: Apache-2.0
"""Makes tiny autoregressive checkpoints with random weights: ``checkpoints.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

SHAPE = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    # Wide enough for the most probable token to be well ahead of the second.
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}


def make(folder: Path) -> None:
    """Writes ``llama`` and ``qwen3`` below ``folder``, float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    families: dict[str, tuple[Any, Any]] = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    }
    for name, (config_class, model_class) in families.items():
        torch.manual_seed(0)
        model_class(config_class(**SHAPE)).to(torch.float32).save_pretrained(folder / name)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
