# SPDX-License-Identifier: Apache-2.0
"""The text of each token of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from vllm.tokenizers import TokenizerLike

_UNFINISHED = "\ufffd"
_LONGEST = 4
"""Bytes of a character, and so tokens, at most; what is then unfinished is no character."""


class Piece(NamedTuple):
    """What one token shows.

    Attributes:
        text: Its text; a character made of several tokens is its last one's.
        special: Whether it is a special token, which is no part of the answer's text.
    """

    text: str
    special: bool


def pieces(tokenizer: TokenizerLike, token_ids: Sequence[int], inside: bool = False) -> list[Piece]:
    """Splits an answer's text into its tokens' texts.

    A token alone may decode to something else than it does behind its neighbour: leading
    spaces, and characters of several bytes. Each is therefore decoded behind the one before.

    Args:
        tokenizer: The tokenizer.
        token_ids: The tokens.
        inside: Whether something that is not known comes before the first one, which then keeps its space.
    """
    specials = set(tokenizer.all_special_ids)
    found: list[Piece] = []
    # Any token will do: only the end of what is decoded behind it is read.
    before = [token_ids[0]] if inside and token_ids and token_ids[0] not in specials else []
    pending: list[int] = []
    for token_id in token_ids:
        if token_id in specials:
            found.append(Piece(tokenizer.decode([token_id]), True))
            before, pending = [], []
            continue
        pending.append(token_id)
        text = tokenizer.decode([*before, *pending])
        if text.endswith(_UNFINISHED) and len(pending) < _LONGEST:
            found.append(Piece("", False))
            continue
        found.append(Piece(text[len(tokenizer.decode(before)) :] if before else text, False))
        before, pending = pending, []
    return found
