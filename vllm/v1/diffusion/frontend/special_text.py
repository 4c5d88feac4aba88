# SPDX-License-Identifier: Apache-2.0
"""Tokens that end an answer and are not part of its text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vllm.v1.diffusion.config import end_tokens

if TYPE_CHECKING:
    from vllm.config import ModelConfig
    from vllm.tokenizers import TokenizerLike

_ENDS = frozenset({"<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|role_end|>"})
"""Texts that end a turn or a text in the families' chat templates, where they are special tokens."""


def end_ids(tokenizer: TokenizerLike, model_config: ModelConfig | None) -> frozenset[int]:
    """The tokens that end an answer, by the checkpoint's files.

    Args:
        tokenizer: The tokenizer.
        model_config: The model; None where only the tokenizer is known.
    """
    special = set(getattr(tokenizer, "all_special_tokens", ()))
    ids = [tokenizer.convert_tokens_to_ids(text) for text in sorted(special & _ENDS)]
    found = {
        *ids,
        *_listed(getattr(tokenizer, "eos_token_id", None)),
        *_listed(getattr(tokenizer, "pad_token_id", None)),
    }
    if model_config is not None:
        found |= end_tokens(model_config)
        found |= set(_listed(getattr(model_config.hf_config, "eos_token_id", None)))
    return frozenset(found)


def _listed(ids: Any) -> Iterable[int]:
    """One id, several or none, as several."""
    return ids if isinstance(ids, list | tuple) else () if ids is None else (ids,)
