# SPDX-License-Identifier: Apache-2.0
"""Tiny random checkpoints in the layout in which each family is published.

That is: the published ``config.json`` with its ``auto_map``, shards with an index,
tokenizer files that name code, and code that must never run.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.engine.layouts import DREAM, DREAM_GENERATION, FAST_DLLM_V2, LLADA2, LLADA_MOE, SDAR_MOE
from tests.engine.vocabularies import TRAP, dump, write_merges, write_tokenizer

Tensors = dict[str, torch.Tensor]


def sdar_moe(folder: Path, c: dict[str, Any] = SDAR_MOE) -> Path:
    """Writes a tiny SDAR-MoE checkpoint; returns the folder."""
    width = c["hidden_size"]
    make = _Maker(seed=11)
    for layer in range(c["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        make.qwen3_attention(name, c)
        if layer in c["mlp_only_layers"]:
            make.network(name + "mlp.", width, c["intermediate_size"])
            continue
        make.linear(name + "mlp.gate", c["num_experts"], width, spread=2.0)
        for expert in range(c["num_experts"]):
            make.network(f"{name}mlp.experts.{expert}.", width, c["moe_intermediate_size"])
    make.ends("model.embed_tokens", c["vocab_size"], width)
    _write(folder, c, make.tensors)
    write_merges(folder, "Qwen2Tokenizer", {"<|endoftext|>": 505, "<|im_end|>": 506, "<|mask|>": 507})
    return folder


def llada2(folder: Path) -> Path:
    """Writes a tiny LLaDA2 checkpoint with the published vocabulary; returns the folder."""
    c = LLADA2
    heads, kv, size = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    width, experts = c["hidden_size"], c["num_experts"]
    make = _Maker(seed=12)
    for layer in range(c["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        make.linear(name + "attention.query_key_value", (heads + 2 * kv) * size, width)
        make.linear(name + "attention.dense", width, heads * size)
        make.norm(name + "attention.query_layernorm", size)
        make.norm(name + "attention.key_layernorm", size)
        make.layer_norms(name, width)
        if layer < c["first_k_dense_replace"]:
            make.network(name + "mlp.", width, c["intermediate_size"])
            continue
        make.linear(name + "mlp.gate", experts, width, spread=2.0)
        make.tensors[name + "mlp.gate.expert_bias"] = make.normal(experts) * 0.2
        make.network(name + "mlp.shared_experts.", width, c["moe_intermediate_size"])
        for expert in range(experts):
            make.network(f"{name}mlp.experts.{expert}.", width, c["moe_intermediate_size"])
    make.ends("model.word_embeddings", c["vocab_size"], width)
    _write(folder, c, make.tensors)
    write_tokenizer(folder, "PreTrainedTokenizerFast", c["vocab_size"], eos=156892, mask=156895)
    return folder


def fast_dllm_v2(folder: Path) -> Path:
    """Writes a tiny Fast-dLLM v2 checkpoint; returns the folder."""
    c = FAST_DLLM_V2
    heads, kv, width = c["num_attention_heads"], c["num_key_value_heads"], c["hidden_size"]
    size = width // heads
    make = _Maker(seed=13)
    for layer in range(c["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        for part, rows in (("q", heads), ("k", kv), ("v", kv)):
            make.linear(f"{name}self_attn.{part}_proj", rows * size, width, biased=True)
        make.linear(name + "self_attn.o_proj", width, heads * size)
        make.layer_norms(name, width)
        make.network(name + "mlp.", width, c["intermediate_size"])
    make.ends("model.embed_tokens", c["vocab_size"], width)
    _write(folder, c, make.tensors)
    write_tokenizer(folder, "Qwen2Tokenizer", c["vocab_size"], eos=505, mask=507)
    return folder


def llada_moe(folder: Path, c: dict[str, Any] = LLADA_MOE) -> Path:
    """Writes a tiny LLaDA-MoE checkpoint; returns the folder."""
    heads, kv, width = c["num_attention_heads"], c["num_key_value_heads"], c["hidden_size"]
    size = width // heads
    make = _Maker(seed=14)
    for layer in range(c["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        for part, rows in (("q", heads), ("k", kv), ("v", kv)):
            make.linear(f"{name}self_attn.{part}_proj", rows * size, width)
        make.linear(name + "self_attn.o_proj", width, heads * size)
        make.norm(name + "self_attn.q_norm", size)
        make.norm(name + "self_attn.k_norm", size)
        make.layer_norms(name, width)
        if c["moe_layer_freq"][layer] == 0:
            make.network(name + "mlp.", width, c["dense_intermediate_size"])
            continue
        make.linear(name + "mlp.gate", c["num_experts"], width, spread=2.0)
        for expert in range(c["num_experts"]):
            make.network(f"{name}mlp.experts.{expert}.", width, c["expert_intermediate_size"])
    make.ends("model.embed_tokens", c["vocab_size"], width)
    _write(folder, c, make.tensors)
    mask = c.get("mask_token_id", 156895)
    write_tokenizer(folder, "PreTrainedTokenizerFast", c["vocab_size"], eos=c["eos_token_id"], mask=mask)
    return folder


def llada(folder: Path, c: dict[str, Any]) -> Path:
    """Writes a tiny LLaDA checkpoint; returns the folder."""
    width, heads = c["d_model"], c["n_heads"]
    kv = c["n_kv_heads"] or (1 if c["multi_query_attention"] else heads)
    inner, vocab = c["mlp_hidden_size"] or c["mlp_ratio"] * width, c["embedding_size"] or c["vocab_size"]
    make = _Maker(seed=15)
    for layer in range(c["n_layers"]):
        name = f"model.transformer.blocks.{layer}."
        for part, rows in (("q", heads), ("k", kv), ("v", kv)):
            make.linear(f"{name}{part}_proj", rows * width // heads, width, biased=c["include_qkv_bias"])
        make.linear(name + "attn_out", width, width)
        make.norm(name + "attn_norm", width)
        make.norm(name + "ff_norm", width)
        make.linear(name + "ff_proj", inner, width)
        make.linear(name + "up_proj", inner, width)
        make.linear(name + "ff_out", width, inner)
    make.tensors["model.transformer.wte.weight"] = make.normal(vocab, width)
    make.norm("model.transformer.ln_f", width)
    if not c["weight_tying"]:
        make.linear("model.transformer.ff_out", vocab, width, spread=3.0)
    _write(folder, c, make.tensors, shards=1)
    mask = c["mask_token_id"]
    write_tokenizer(folder, "PreTrainedTokenizerFast", vocab, eos=c["eos_token_id"], mask=mask)
    return folder


def sdar(folder: Path, c: dict[str, Any]) -> Path:
    """Writes a tiny SDAR checkpoint; returns the folder."""
    make = _Maker(seed=16)
    for layer in range(c["num_hidden_layers"]):
        make.qwen3_attention(f"model.layers.{layer}.", c)
        make.network(f"model.layers.{layer}.mlp.", c["hidden_size"], c["intermediate_size"])
    make.ends("model.embed_tokens", c["vocab_size"], c["hidden_size"], tied=c["tie_word_embeddings"])
    _write(folder, c, make.tensors, shards=1)
    write_merges(folder, "Qwen2Tokenizer", {"<|endoftext|>": 505, "<|im_end|>": 506, "<|mask|>": 507})
    return folder


def dream(folder: Path, weights: Path) -> Path:
    """Writes another folder's tiny Dream weights as Dream is published; returns the folder."""
    _write(folder, DREAM, load_file(weights / "model.safetensors"))
    dump(folder / "generation_config.json", DREAM_GENERATION)
    (folder / "generation_utils.py").write_text(TRAP)
    others = (f"<|extra_{i}|>" for i in range(14))
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *others, "<|beginoftext|>", "<|mask|>")
    write_merges(folder, "DreamTokenizer", {token: 490 + i for i, token in enumerate(special)})
    return folder


def a2d_qwen2(folder: Path) -> Path:
    """Writes the tiny Open-dLLM checkpoint, whose layers are the same, as A2D's Qwen2; returns the folder."""
    source = Path(__file__).parent.parent / "golden" / "open-dllm"
    shutil.copytree(source, folder, dirs_exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    config |= {"architectures": ["A2DQwen2LMHeadModel"], "model_type": "a2d-qwen2"}
    dump(folder / "config.json", config)
    return folder


def wedlm_qwen2(folder: Path) -> Path:
    """Writes the same checkpoint as a WeDLM of Qwen2.5's layers; returns the folder."""
    a2d_qwen2(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["WeDLMForCausalLM"], "model_type": "wedlm", "mask_token_id": 508}
    dump(folder / "config.json", config | {"attention_bias": True, "qk_norm": False})
    return folder


class _Maker:
    """Random tensors by published names; spread out, so that choices are clear."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.tensors: Tensors = {}

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def linear(self, name: str, rows: int, columns: int, spread: float = 1.0, biased: bool = False) -> None:
        self.tensors[name + ".weight"] = self.normal(rows, columns) * (spread / columns**0.5)
        if biased:
            self.tensors[name + ".bias"] = self.normal(rows) * 0.5

    def qwen3_attention(self, name: str, c: dict[str, Any]) -> None:
        heads, kv, size, width = (
            c[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size")
        )
        biased = c["attention_bias"]
        for part, rows in (("q", heads), ("k", kv), ("v", kv)):
            self.linear(f"{name}self_attn.{part}_proj", rows * size, width, biased=biased)
        self.linear(name + "self_attn.o_proj", width, heads * size, biased=biased)
        self.norm(name + "self_attn.q_norm", size)
        self.norm(name + "self_attn.k_norm", size)
        self.layer_norms(name, width)

    def norm(self, name: str, size: int) -> None:
        self.tensors[name + ".weight"] = 1 + 0.1 * self.normal(size)

    def layer_norms(self, name: str, width: int) -> None:
        self.norm(name + "input_layernorm", width)
        self.norm(name + "post_attention_layernorm", width)

    def network(self, name: str, width: int, inner: int) -> None:
        self.linear(name + "gate_proj", inner, width)
        self.linear(name + "up_proj", inner, width)
        self.linear(name + "down_proj", width, inner)

    def ends(self, embedding: str, vocab: int, width: int, tied: bool = False) -> None:
        self.tensors[embedding + ".weight"] = self.normal(vocab, width)
        self.norm("model.norm", width)
        if not tied:
            self.linear("lm_head", vocab, width, spread=3.0)


def _write(folder: Path, config: dict[str, Any], tensors: Tensors, shards: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    dump(folder / "config.json", config)
    for value in config["auto_map"].values():
        (folder / (value.split(".")[0] + ".py")).write_text(TRAP)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    names = sorted(tensors)
    parts = {f"model-0000{i + 1}-of-0000{shards}.safetensors": names[i::shards] for i in range(shards)}
    for file, members in parts.items():
        save_file({n: tensors[n].contiguous() for n in members}, folder / file, {"format": "pt"})
    weight_map = {name: file for file, members in parts.items() for name in members}
    dump(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
