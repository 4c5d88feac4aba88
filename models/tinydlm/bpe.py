"""A byte-level byte-pair tokenizer: learns merges, encodes and decodes, and is written as ``tokenizer.json``.

A digit is a token of its own, so that numbers have one spelling; words keep the space before them.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

from .vocab import EOS, SPECIAL_NAMES

WORD = r" ?[A-Za-z]+|[0-9]|\n *| ?[^\sA-Za-z0-9]+|\s"
"""What is never merged with its neighbours: a word, a digit, a new line with its indentation, signs."""

_SPLIT = re.compile(WORD)
_FIRST_BYTE = len(SPECIAL_NAMES["sdar"])


def byte_characters() -> list[str]:
    """The printable character that stands for each byte in the published byte-level format."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in shown]
    codes = {byte: byte for byte in shown} | {byte: 256 + i for i, byte in enumerate(others)}
    return [chr(codes[byte]) for byte in range(256)]


_CHARACTERS = byte_characters()
_BYTES = {char: byte for byte, char in enumerate(_CHARACTERS)}


class BytePairs:
    """A tokenizer of special tokens, the 256 bytes, and one token a merge.

    Attributes:
        merges: pairs of tokens in the order in which they were learnt.
    """

    def __init__(self, merges: Sequence[tuple[str, str]]) -> None:
        """Makes a tokenizer of merges already learnt."""
        self.merges = tuple(merges)
        self.rank = {pair: index for index, pair in enumerate(self.merges)}
        self.known: dict[str, tuple[int, ...]] = {}

    @classmethod
    def learn(cls, texts: Iterable[str], size: int) -> "BytePairs":
        """Learns the merges that give ``size`` tokens, the most frequent pair first.

        Raises:
            ValueError: the texts have too few different pairs for ``size``.
        """
        counts = Counter(word for text in texts for word in _SPLIT.findall(text))
        words = {tuple(_CHARACTERS[byte] for byte in word.encode()): n for word, n in counts.items()}
        merges: list[tuple[str, str]] = []
        while len(merges) < size - 256 - _FIRST_BYTE:
            pairs: Counter[tuple[str, str]] = Counter()
            for word, count in words.items():
                for pair in pairwise(word):
                    pairs[pair] += count
            if not pairs:
                raise ValueError(f"size is {size}, but the texts have pairs for {size - len(merges)} only")
            best = min(pairs, key=lambda pair: (-pairs[pair], pair))
            merges.append(best)
            words = {
                (_merge(word, best) if best[0] in word else word): count for word, count in words.items()
            }
        return cls(merges)

    @classmethod
    def of(cls, content: dict[str, Any]) -> "BytePairs":
        """Reads the content of a ``tokenizer.json`` that this class wrote."""
        return cls([tuple(merge) for merge in content["model"]["merges"]])

    @cached_property
    def tokens(self) -> list[str]:
        """Text of every token by id, in the byte-level format."""
        special = [name for _, name in sorted(SPECIAL_NAMES["sdar"].items())]
        return [*special, *_CHARACTERS, *("".join(pair) for pair in self.merges)]

    @cached_property
    def ids(self) -> dict[str, int]:
        """Id of every token."""
        return {token: index for index, token in enumerate(self.tokens)}

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    def encode(self, text: str) -> list[int]:
        """Turns text into token ids; special tokens have no text."""
        ids: list[int] = []
        for word in _SPLIT.findall(text):
            if word not in self.known:
                self.known[word] = self._encode(word)
            ids += self.known[word]
        return ids

    def _encode(self, word: str) -> tuple[int, ...]:
        parts = tuple(_CHARACTERS[byte] for byte in word.encode())
        while len(parts) > 1:
            best = min(pairwise(parts), key=lambda pair: self.rank.get(pair, len(self.rank)))
            if best not in self.rank:
                break
            parts = _merge(parts, best)
        return tuple(self.ids[part] for part in parts)

    def decode(self, ids: Sequence[int]) -> str:
        """Turns ids into text up to the first end token; other special tokens become U+FFFD."""
        content = bytearray()
        for token in ids:
            if token == EOS:
                break
            if token < _FIRST_BYTE:
                content += "\ufffd".encode()
            else:
                content += bytes(_BYTES[char] for char in self.tokens[token])
        return content.decode(errors="replace")

    def tokenizer_json(self) -> dict[str, Any]:
        """The content of ``tokenizer.json``."""
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        split = {"type": "Split", "pattern": {"Regex": WORD}, "behavior": "Isolated", "invert": False}
        bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": i, "content": name, **flags, "special": True}
                for i, name in enumerate(self.tokens[:_FIRST_BYTE])
            ],
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_]},
            "post_processor": None,
            "decoder": bytes_,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": self.ids,
                "merges": [list(pair) for pair in self.merges],
            },
        }


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    index = 0
    while index < len(word):
        if word[index : index + 2] == pair:
            merged.append("".join(pair))
            index += 2
        else:
            merged.append(word[index])
            index += 1
    return tuple(merged)
