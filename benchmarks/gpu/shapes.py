# SPDX-License-Identifier: Apache-2.0
"""Published models' shapes as ``config.json``, for engines with dummy weights."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

_QWEN3_8B: dict[str, Any] = {
    "attention_bias": False,
    "eos_token_id": 151643,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 151936,
}

_LLADA2_MINI: dict[str, Any] = {
    "architectures": ["LLaDA2MoeModelLM"],
    "model_type": "llada2_moe",
    "head_dim": 128,
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "moe_intermediate_size": 512,
    "num_attention_heads": 16,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 20,
    "num_key_value_heads": 4,
    "num_shared_experts": 1,
    "vocab_size": 157184,
    "eos_token_id": 156892,
    "mask_token_id": 156895,
    "rope_theta": 600000,
    "torch_dtype": "bfloat16",
}

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-8b": _QWEN3_8B | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"},
    "sdar-8b": _QWEN3_8B
    | {"architectures": ["SDARForCausalLM"], "model_type": "sdar", "mask_token_id": 151669},
    "sdar-30b-a3b": _QWEN3_8B
    | {
        "architectures": ["SDARMoeForCausalLM"],
        "model_type": "sdar_moe",
        "mask_token_id": 151669,
        "decoder_sparse_step": 1,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "mlp_only_layers": [],
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
    },
    "llada-8b": {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "activation_type": "silu",
        "block_type": "llama",
        "d_model": 4096,
        "eos_token_id": 126081,
        "include_bias": False,
        "include_qkv_bias": False,
        "mask_token_id": 126336,
        "max_sequence_length": 4096,
        "mlp_hidden_size": 12288,
        "n_heads": 32,
        "n_kv_heads": 32,
        "n_layers": 32,
        "rms_norm_eps": 1e-5,
        "rope": True,
        "rope_theta": 500000.0,
        "torch_dtype": "bfloat16",
        "vocab_size": 126464,
        "weight_tying": False,
    },
    "dream-7b": {
        "architectures": ["DreamModel"],
        "model_type": "Dream",
        "attention_bias": True,
        "eos_token_id": 151643,
        "hidden_act": "silu",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "mask_token_id": 151666,
        "max_position_embeddings": 131072,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "pad_token_id": 151643,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 152064,
    },
    "llada2-mini": _LLADA2_MINI,
    "llada2-flash": _LLADA2_MINI
    | {
        "hidden_size": 4096,
        "intermediate_size": 9216,
        "moe_intermediate_size": 1024,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
    },
    "llada-moe-7b": {
        "architectures": ["LLaDAMoEModelLM"],
        "model_type": "llada",
        "eos_token_id": 156892,
        "expert_intermediate_size": 1024,
        "hidden_size": 2048,
        "mask_token_id": 156895,
        "moe_layer_freq": 1,
        "num_attention_heads": 16,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 16,
        "num_key_value_heads": 16,
        "rope_theta": 50000,
        "torch_dtype": "bfloat16",
        "vocab_size": 157184,
    },
}
"""Short name -> ``config.json`` (published values)."""


def write_config(shape: str, **changes: Any) -> str:
    """Writes a shape's ``config.json`` into a folder of its own and returns the folder.

    Args:
        shape: A key of ``SHAPES``.
        **changes: Fields that differ, such as ``num_hidden_layers``.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"{shape}-"))
    (folder / "config.json").write_text(json.dumps(SHAPES[shape] | changes))
    return str(folder)
