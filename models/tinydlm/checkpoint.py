"""Writes and reads a checkpoint folder in its family's published layout."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .bpe import BytePairs
from .network import Network, NetworkConfig
from .tokenizer import write_tokenizer
from .vocab import EOS, MASK

LONGEST_CANVAS = 64
"""Tokens of the longest canvas that training shows a bidirectional model."""

SDAR_NAMES = {
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **{name: f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")},
    **{name: f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")},
}
LLADA_NAMES = {
    "attention_norm": "attn_norm",
    "o_proj": "attn_out",
    "ffn_norm": "ff_norm",
    "gate_proj": "ff_proj",
    "down_proj": "ff_out",
}
LLADA_OUTER = {"embedding": "wte", "final_norm": "ln_f", "head": "ff_out"}
SDAR_OUTER = {"embedding": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}


def published_name(family: str, name: str) -> str:
    """Translates a weight's name in ``Network`` to the family's published one."""
    parts = name.split(".")
    if parts[0] == "layers":
        _, index, inner, kind = parts
        if family == "sdar":
            return f"model.layers.{index}.{SDAR_NAMES[inner]}.{kind}"
        return f"model.transformer.blocks.{index}.{LLADA_NAMES.get(inner, inner)}.{kind}"
    if family == "sdar":
        return f"{SDAR_OUTER[parts[0]]}.{parts[1]}"
    return f"model.transformer.{LLADA_OUTER[parts[0]]}.{parts[1]}"


def config_json(config: NetworkConfig, dtype: str = "float32") -> dict[str, Any]:
    """The family's ``config.json``, without ``auto_map``: no code travels with the weights.

    Args:
        config: shape of the network.
        dtype: what the model is meant to run in.
    """
    common = {
        "eos_token_id": EOS,
        "pad_token_id": EOS,
        "mask_token_id": MASK,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "vocab_size": config.vocab_size,
        "dtype": dtype,
        "torch_dtype": dtype,
        "use_cache": False,
    }
    if config.family == "sdar":
        return common | {
            "architectures": ["SDARForCausalLM"],
            "model_type": "sdar",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "block_size": config.block_size,
            "bos_token_id": EOS,
            "head_dim": config.head_dim,
            "hidden_act": "silu",
            "hidden_size": config.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": config.ffn_size,
            "max_position_embeddings": config.max_positions,
            "max_window_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_hidden_layers": config.layers,
            "num_key_value_heads": config.kv_heads,
            "rope_scaling": None,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "use_sliding_window": False,
        }
    return common | {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "activation_type": "silu",
        "alibi": False,
        "attention_dropout": 0.0,
        "attention_layer_norm": False,
        "attention_layer_norm_with_affine": True,
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": config.hidden_size,
        "embedding_dropout": 0.0,
        "embedding_size": config.vocab_size,
        "flash_attention": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "init_device": "meta",
        "init_fn": "mitchell",
        "init_std": 0.02,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "max_sequence_length": config.max_positions,
        "mlp_hidden_size": config.ffn_size,
        "mlp_ratio": 4,
        "multi_query_attention": None,
        "n_heads": config.heads,
        "n_kv_heads": config.kv_heads,
        "n_layers": config.layers,
        "residual_dropout": 0.0,
        "stop_at_eos": True,  # A key of this project: else LLaDA fills its canvas.
        "rope": True,
        "rope_full_precision": True,
        "scale_logits": False,
        "weight_tying": False,
    }


def parse_config(published: dict[str, Any]) -> NetworkConfig:
    """Reads what ``config_json`` wrote, or a published config of the same kind."""
    family = published["model_type"]
    sdar = family == "sdar"
    heads = published["num_attention_heads" if sdar else "n_heads"]
    hidden = published["hidden_size" if sdar else "d_model"]
    return NetworkConfig(
        family=family,
        block_size=published.get("block_size", 16),
        hidden_size=hidden,
        ffn_size=published["intermediate_size" if sdar else "mlp_hidden_size"],
        layers=published["num_hidden_layers" if sdar else "n_layers"],
        heads=heads,
        kv_heads=published["num_key_value_heads" if sdar else "n_kv_heads"],
        head_dim=published["head_dim"] if sdar else hidden // heads,
        vocab_size=published["vocab_size"],
        max_positions=published["max_position_embeddings" if sdar else "max_sequence_length"],
        rope_theta=float(published["rope_theta"]),
        norm_eps=published["rms_norm_eps"],
    )


def save(
    network: Network,
    folder: Path,
    dtype: torch.dtype = torch.bfloat16,
    tokenizer: BytePairs | None = None,
    compute: str = "float32",
) -> None:
    """Writes configuration, tokenizer and weights into ``folder``.

    Args:
        network: the model.
        folder: where to write; made where it is missing.
        dtype: what weights are rounded to.
        tokenizer: the model's; without one, that of the characters.
        compute: what the model is meant to run in.
    """
    family = network.config.family
    folder.mkdir(parents=True, exist_ok=True)
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), EOS)
    # transformers warns of a temperature of 0 without do_sample
    generation = {**ids, "do_sample": True, "temperature": 0.0}
    if family == "llada":
        generation |= {"max_canvas_length": LONGEST_CANVAS, "max_new_tokens": LONGEST_CANVAS}
    for name, content in (
        ("config", config_json(network.config, compute)),
        ("generation_config", generation),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    write_tokenizer(family, folder, network.config.max_positions, tokenizer)
    weights: dict[str, Tensor] = {
        published_name(family, name): weight.detach().to("cpu", dtype).contiguous()
        for name, weight in network.state_dict().items()
    }
    save_file(dict(sorted(weights.items())), folder / "model.safetensors", {"format": "pt"})


def load(folder: Path, device: str | torch.device = "cpu") -> Network:
    """Reads a checkpoint folder into a float32 network in evaluation mode."""
    network = Network(parse_config(json.loads((folder / "config.json").read_text())))
    stored = load_file(folder / "model.safetensors")
    names = {name: published_name(network.config.family, name) for name in network.state_dict()}
    unknown = set(stored) - set(names.values())
    if unknown:
        raise ValueError(f"unknown weights in {folder}: {sorted(unknown)}")
    network.load_state_dict({name: stored[other].float() for name, other in names.items()})
    return network.to(device).eval()
