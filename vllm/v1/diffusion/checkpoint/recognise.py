# SPDX-License-Identifier: Apache-2.0
"""Recognises diffusion models whose ``config.json`` carries an autoregressive model's name.

Open-dLLM publishes its checkpoints as ``Qwen2ForCausalLM``: what shows that they denoise is the mask
token of their tokenizer. Answered token by token they would return nonsense, and nothing would say so.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vllm.logger import init_logger
from vllm.v1.diffusion.checkpoint.files import CheckpointFiles, checkpoint_files
from vllm.v1.diffusion.checkpoint.known_fields import names

if TYPE_CHECKING:
    from vllm.config import ModelConfig

logger = init_logger(__name__)

_BASES = frozenset(
    names("LlamaForCausalLM MistralForCausalLM Qwen2ForCausalLM Qwen3ForCausalLM Qwen3MoeForCausalLM")
)
"""Autoregressive architectures that diffusion models are trained from."""

_WEDLM, _WEDLM_QWEN2 = "WeDLMForCausalLM", "WeDLMQwen2ForCausalLM"
_MODULES = {
    "modeling_stable_diffcoder": "StableDiffcoderForCausalLM",
    "modeling_seed_diffcoder": "StableDiffcoderForCausalLM",
    "modeling_wedlm": _WEDLM,
    "modeling_sdar": "SDARForCausalLM",
    "modeling_sdar_moe": "SDARMoeForCausalLM",
    "modeling_dream": "DreamModel",
}
"""A family's published module, as ``auto_map`` names it -> its architecture."""

_DREAM, _DREAM_ON = "DreamModel", "DreamOnModel"
_EXPAND = "<|expand|>"
_OPEN_DLLM = "OpenDLLMForCausalLM"
_RENAMED = "vllm_diffusion_renamed"
"""Attribute of a configuration whose architecture was changed here."""


def recognise(model_config: ModelConfig) -> None:
    """Gives a model the architecture that its files show it to have.

    Args:
        model_config: The model; changed where its name is an autoregressive one and its files are
            a diffusion model's.

    Raises:
        ValueError: The configuration has a mask token, and nothing says which family's it is.
    """
    architectures = model_config.architectures
    if _DREAM in architectures:
        _recognise_growing(model_config)
        return
    if not _BASES.intersection(architectures):
        return
    files = checkpoint_files(model_config)
    found, why = _shown(architectures, files)
    if found is not None:
        logger.warning(
            "%s is named %s, but %s: it is served as %s, by denoising. To generate one token after the "
            "other: --generation-loop autoregressive.",
            model_config.model,
            ", ".join(architectures),
            why,
            found,
        )
        rename(model_config, found)
    elif files.config.get("mask_token_id") is not None:
        example = json.dumps({"architectures": ["A2DQwen3LMHeadModel"]})
        raise ValueError(
            f"{model_config.model} is named {', '.join(architectures)}, and config.json has "
            f"mask_token_id={files.config['mask_token_id']!r}: it is a diffusion model, of a family that its "
            f"files do not name. Name the family's architecture, such as --hf-overrides '{example}', or "
            "generate one token after the other with --generation-loop autoregressive."
        )
    elif files.mask_token is not None:
        logger.warning(
            "%s generates one token after the other, as %s does. Its tokenizer has a mask token, %r: if it "
            "is a diffusion model, name its family's architecture with --hf-overrides.",
            model_config.model,
            ", ".join(architectures),
            files.mask_token,
        )


def _recognise_growing(model_config: ModelConfig) -> None:
    """Tells DreamOn's checkpoints from Dream's, whose name they carry, by the id that expands."""
    files = checkpoint_files(model_config)
    found = files.config.get("expand_token_id", files.generation_config.get("expand_token_id"))
    if found is None and "expand_token_id" not in files.config:
        added = files.tokenizer.get("added_tokens_decoder") or {}
        found = next((int(i) for i, token in added.items() if token.get("content") == _EXPAND), None)
    if found is not None:
        vocab_size = model_config.get_vocab_size()
        if not isinstance(found, int) or not 0 <= found < vocab_size:
            raise ValueError(
                f"expand_token_id={found!r} must be an id of the vocabulary of {vocab_size} tokens."
            )
        model_config.hf_config.expand_token_id = found
        rename(model_config, _DREAM_ON)


def rename(model_config: ModelConfig, architecture: str) -> None:
    """Resolves the model's architecture again, under another name.

    Args:
        model_config: The model, changed.
        architecture: The name.
    """
    model_config.hf_config.architectures = [architecture]
    setattr(model_config.hf_config, _RENAMED, True)
    model_config.model_arch_config = model_config.get_model_arch_config()
    model_config._model_info, model_config._architecture = model_config.registry.inspect_model_cls(
        model_config.architectures, model_config
    )


def is_renamed(model_config: ModelConfig) -> bool:
    """Whether :func:`recognise` gave the model another architecture than its files name."""
    return bool(getattr(model_config.hf_config, _RENAMED, False))


def _shown(architectures: list[str], files: CheckpointFiles) -> tuple[str | None, str]:
    """The architecture that the files show, and what shows it."""
    for target in (files.config.get("auto_map") or {}).values():
        module = str(target).rpartition("--")[2].partition(".")[0]
        if module in _MODULES:
            found = _MODULES[module]
            if found == _WEDLM and "Qwen2ForCausalLM" in architectures:
                found = _WEDLM_QWEN2
            return found, f"auto_map names {module}"
    if "Qwen2ForCausalLM" in architectures:
        if files.mask_token is not None:
            return _OPEN_DLLM, f"its tokenizer has a mask token, {files.mask_token!r}, as Open-dLLM's"
        if (mask := files.config.get("mask_token_id")) is not None:
            return _OPEN_DLLM, f"config.json has mask_token_id={mask!r}, as Open-dLLM's"
    return None, ""
