# SPDX-License-Identifier: Apache-2.0
"""The JSON files of a checkpoint, as they are on disk or on the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.transformers_utils.repo_utils import get_hf_file_to_dict

if TYPE_CHECKING:
    from vllm.config import ModelConfig

_GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True)
class CheckpointFiles:
    """What the files hold; empty where there is none.

    Attributes:
        config: ``config.json`` with ``--hf-overrides``.
        generation_config: ``generation_config.json``, where the user wants it read.
        tokenizer: ``tokenizer_config.json``; ``added_tokens_decoder`` has those of ``tokenizer.json`` too.
    """

    config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    tokenizer: Mapping[str, Any]

    @property
    def mask_token(self) -> str | None:
        """The text of the tokenizer's mask token."""
        token = self.tokenizer.get("mask_token")
        return token.get("content") if isinstance(token, Mapping) else token


def checkpoint_files(model_config: ModelConfig) -> CheckpointFiles:
    """Reads the files of a model, once for a process.

    Args:
        model_config: The model.
    """
    overrides = model_config.hf_overrides
    config = _read("config.json", model_config.hf_config_path or model_config.model, model_config.revision)
    return CheckpointFiles(
        config={**config, **(overrides if isinstance(overrides, dict) else {})},
        generation_config=_generation_config(model_config),
        tokenizer=_tokenizer(model_config.tokenizer, model_config.tokenizer_revision),
    )


def _generation_config(model_config: ModelConfig) -> Mapping[str, Any]:
    source = model_config.generation_config
    if source == "vllm":
        return {}
    if source == "auto":
        source = model_config.hf_config_path or model_config.model
    return _read(_GENERATION_CONFIG, source, model_config.revision)


@lru_cache(maxsize=32)
def _tokenizer(tokenizer: str, revision: str | None) -> Mapping[str, Any]:
    found = dict(_read("tokenizer_config.json", tokenizer, revision))
    named = _read("special_tokens_map.json", tokenizer, revision)
    found.setdefault("mask_token", named.get("mask_token"))
    added = found.get("added_tokens_decoder") or {}
    found["added_tokens_decoder"] = {**_added_tokens(Path(tokenizer)), **added}
    return found


def _added_tokens(folder: Path) -> dict[str, Any]:
    """The added tokens of a local ``tokenizer.json``, as ``added_tokens_decoder`` holds them."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return {}
    listed = json.loads(file.read_text("utf-8")).get("added_tokens") or ()
    return {str(token["id"]): {"content": token["content"]} for token in listed}


@lru_cache(maxsize=64)
def _read(name: str, model: str, revision: str | None) -> Mapping[str, Any]:
    try:
        return get_hf_file_to_dict(name, model, revision) or {}
    except (OSError, json.JSONDecodeError):
        return {}
