# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with int8 weights, as compressed-tensors publishes them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

_EMBEDDING = re.compile(r"(wte|embed_tokens|word_embeddings)$")
# Left out by name: the head, routers, of the first layer an output, of the second what is fused.
_KEPT = re.compile(
    r"(^lm_head|^diffusion_head|transformer\.ff_out|mlp\.gate|\.0\.(.*\.)?(o_proj|attn_out|dense)"
    r"|\.1\.(.*\.)?([qkv]_proj|query_key_value))$"
)
_EXPERT = re.compile(r"\.experts\.")


def quantise(folder: Path, target: Path) -> dict[str, torch.Tensor]:
    """Writes a checkpoint whose linear layers, but for experts, are int8 by output channel.

    Args:
        folder: The checkpoint.
        target: Where to write it.

    Returns:
        What rounding added to the weights, by their published names.
    """
    shutil.copytree(folder, target)
    deltas: dict[str, torch.Tensor] = {}
    ignored = ["re:.*\\.experts\\..*"]
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(target.glob("*.safetensors")):
        tensors |= load_file(file)
        file.unlink()
    for name, weight in list(tensors.items()):
        module = name.removesuffix(".weight")
        if weight.dim() != 2 or _EMBEDDING.search(module) or _EXPERT.search(module):
            continue
        if _KEPT.search(module):
            ignored.append(module)
            continue
        scale = weight.float().abs().amax(1, keepdim=True) / 127
        rounded = (weight.float() / scale).round()
        deltas[name] = rounded * scale - weight.float()
        tensors[name], tensors[name + "_scale"] = rounded.to(torch.int8), scale
    (target / "model.safetensors.index.json").unlink(missing_ok=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, target / "model.safetensors", {"format": "pt"})
    eight = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": eight | {"strategy": "channel", "dynamic": False},
        "input_activations": eight | {"strategy": "token", "dynamic": True},
    }
    config = json.loads((target / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ignored,
    }
    (target / "config.json").write_text(json.dumps(config))
    return deltas
