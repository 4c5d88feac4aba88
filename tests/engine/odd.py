# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of what a family's configuration can say and its best-known checkpoints do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.engine import checkpoints
from tests.engine.layouts import SDAR_MOE
from tests.engine.published import GOLDEN, Published
from tests.reference.bidirectional import LladaReference
from tests.reference.moe import SdarMoeReference
from tests.reference.sdar import SdarReference


def _golden(family: str, **changed: Any) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((GOLDEN / family / "config.json").read_text())
    return config | changed


_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
_GROUPED = _golden("llada", n_kv_heads=2, include_qkv_bias=True, embedding_size=576, rope_theta=10000.0)
_MULTI_QUERY = _golden(
    "llada",
    embedding_size=None,
    mlp_hidden_size=None,
    mlp_ratio=2,
    multi_query_attention=True,
    n_kv_heads=None,
    scale_logits=True,
    weight_tying=True,
)
_BIASED = _golden("sdar", attention_bias=True, rope_scaling=_YARN, tie_word_embeddings=True)
_BIASED_MOE = SDAR_MOE | {
    "attention_bias": True,
    "mlp_only_layers": [1],
    "norm_topk_prob": False,
    "rope_scaling": {"type": "linear", "factor": 2.0},
}


def _published(write: Callable[..., Path], config: dict[str, Any], reference: Any) -> Published:
    def here(folder: Path) -> Path:
        return folder if folder.exists() else write(folder, config)

    return Published(write=here, reference=reference)


ODD = {
    "LLaDA, grouped heads and biases": _published(checkpoints.llada, _GROUPED, LladaReference),
    "LLaDA, one key head and tied": _published(checkpoints.llada, _MULTI_QUERY, LladaReference),
    "SDAR, biases, tied, YaRN": _published(checkpoints.sdar, _BIASED, SdarReference),
    "SDAR-MoE, biases and a dense layer": _published(checkpoints.sdar_moe, _BIASED_MOE, SdarMoeReference),
}
