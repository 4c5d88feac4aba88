# SPDX-License-Identifier: Apache-2.0
"""Tiny tokenizers in the layouts in which the families publish theirs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TRAP = "raise SystemExit('code of a checkpoint was run')\n"
MERGES = ("h e", "l l", "he ll", "hell o", "o r", "\u0120 w", "\u0120w or", "' s", "1 2", "o '")
"""Of the byte-pair tokenizer. The last two join what the pre-tokenizer must have parted."""
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tokenizer(folder: Path, tokenizer_class: str, vocab: int, *, eos: int, mask: int) -> None:
    """Writes a byte-level tokenizer whose configuration names code of its own."""
    special = {eos: "<|endoftext|>", mask: "<|mask|>"}
    letters = dict(enumerate(byte_letters()))
    tokens = {special.get(i) or letters.get(i) or f"t{i}": i for i in range(vocab)}
    added = [
        {"id": i, "content": name, "special": True, "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": False}
        for i, name in special.items()
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    model = {"type": "BPE", "vocab": tokens, "merges": [], "byte_fallback": False}
    dump(
        folder / "tokenizer.json",
        {"version": "1.0", "added_tokens": added, "pre_tokenizer": byte_level}
        | {"normalizer": None, "decoder": byte_level, "post_processor": None, "model": model},
    )
    dump(
        folder / "tokenizer_config.json",
        {"auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}}
        | {"tokenizer_class": tokenizer_class, "eos_token": special[eos], "pad_token": special[eos]}
        | {"mask_token": special[mask], "model_max_length": 32768},
    )
    (folder / "tokenization_own.py").write_text(TRAP)


def byte_letters() -> Iterator[str]:
    """The printable stand-ins of bytes 0 to 255 in byte-level tokenizers."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    free = 256
    for byte in range(256):
        if byte in plain:
            yield chr(byte)
        else:
            yield chr(free)
            free += 1


def write_merges(folder: Path, tokenizer_class: str, special: dict[str, int]) -> None:
    """Writes Qwen2's byte-level BPE as ``vocab.json`` and ``merges.txt``, without ``tokenizer.json``.

    So are Dream's and its kin's, with a class that only the folder's own code defines.

    Args:
        folder: The checkpoint's folder.
        tokenizer_class: Its name in ``tokenizer_config.json``.
        special: Special tokens, called as Qwen2's and Dream's are, and their ids, without a gap.
    """
    pieces = [*byte_letters(), *(merge.replace(" ", "") for merge in MERGES)]
    fill = (f"t{i}" for i in range(len(pieces), min(special.values())))
    vocab = {piece: i for i, piece in enumerate([*pieces, *fill])}
    dump(folder / "vocab.json", vocab)
    (folder / "merges.txt").write_text("\n".join(("#version: 0.2", *MERGES, "")), "utf-8")
    dump(folder / "added_tokens.json", special)
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    named = {"eos": "<|endoftext|>", "pad": "<|endoftext|>", "mask": "<|mask|>"}
    tokens = {f"{role}_token": content for role, content in named.items()}
    extra = {"additional_special_tokens": [t for t in special if t not in named.values()]}
    dump(folder / "special_tokens_map.json", {k: {"content": v, **flags} for k, v in tokens.items()} | extra)
    added = {str(i): {"content": token, **flags, "special": True} for token, i in special.items()}
    module = tokenizer_class.removesuffix("Tokenizer").lower()
    dump(
        folder / "tokenizer_config.json",
        {"add_prefix_space": False, "added_tokens_decoder": added, "bos_token": None, **tokens, **extra}
        | {"auto_map": {"AutoTokenizer": [f"tokenization_{module}.{tokenizer_class}", None]}}
        | {"chat_template": CHAT, "clean_up_tokenization_spaces": False, "errors": "replace"}
        | {"model_max_length": 131072, "split_special_tokens": False, "unk_token": None}
        | {"tokenizer_class": tokenizer_class},
    )
    (folder / f"tokenization_{module}.py").write_text(TRAP)


def dump(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file."""
    path.write_text(json.dumps(content, indent=2) + "\n")
