"""Writes the character tokenizer in the fast Hugging Face format, as plain JSON."""

import json
from pathlib import Path
from typing import Any

from .bpe import BytePairs
from .vocab import CHARACTERS, EOS, MASK, SPECIAL_NAMES, TURN_END, TURN_START, UNK, VOCAB_SIZE

CHAT_TEMPLATE = (
    "{% set users = messages | selectattr('role', 'equalto', 'user') | list %}"
    "{% if users %}{{ users[-1]['content'] }}{% endif %}"
)
"""The last user message, verbatim: the models know prompts and answers, no turns."""


def token_names(family: str) -> list[str]:
    """Text of every token by id."""
    special = SPECIAL_NAMES[family]
    codes = {ord(char): char for char in CHARACTERS}
    return [codes.get(i) or special.get(i) or f"<|reserved_{i}|>" for i in range(VOCAB_SIZE)]


def _added(name: str) -> dict[str, Any]:
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    return {"content": name, **dict.fromkeys(flags, False), "special": True}


def tokenizer_json(family: str) -> dict[str, Any]:
    """The content of ``tokenizer.json``.

    Byte-pair encoding without merges makes a token of every character, and a ``Fuse`` decoder puts
    them back together with nothing in between.
    """
    names = token_names(family)
    special = [i for i, name in enumerate(names) if name not in CHARACTERS]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, **_added(names[i])} for i in special],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": names[UNK],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {name: i for i, name in enumerate(names)},
            "merges": [],
        },
    }


def special_tokens(family: str) -> dict[str, Any]:
    """Roles of the special tokens: the content of ``special_tokens_map.json``."""
    names = SPECIAL_NAMES[family]
    return {
        "additional_special_tokens": [names[TURN_START], names[TURN_END]],
        "bos_token": names[EOS],
        "eos_token": names[EOS],
        "mask_token": names[MASK],
        "pad_token": names[EOS],
        "unk_token": names[UNK],
    }


def write_tokenizer(family: str, folder: Path, max_length: int, pairs: BytePairs | None = None) -> None:
    """Writes the three tokenizer files of ``family`` into ``folder``, of ``pairs`` or of the characters."""
    content = tokenizer_json(family) if pairs is None else pairs.tokenizer_json()
    added = {str(token["id"]): _added(token["content"]) for token in content["added_tokens"]}
    config = special_tokens(family) | {
        "add_bos_token": False,
        "added_tokens_decoder": added,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "padding_side": "left",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    contents = {
        "tokenizer": content,
        "tokenizer_config": config,
        "special_tokens_map": special_tokens(family),
    }
    for name, content in contents.items():
        text = json.dumps(content, indent=2, ensure_ascii=True, sort_keys=name != "tokenizer")
        (folder / f"{name}.json").write_text(text + "\n")
