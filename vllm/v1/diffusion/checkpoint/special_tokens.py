# SPDX-License-Identifier: Apache-2.0
"""Refuses a checkpoint whose model writes tokens that edit its canvas, where nothing executes them.

Such a model writes a token that means "delete me" or "put two masks here". A decoder that does not
know the token returns it as text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

ACTIONS = ("delete", "edit", "expand", "insert", "split")
_FIELD = re.compile(rf"^({'|'.join(ACTIONS)})_token(_id)?$")
_TEXT = re.compile(rf"^[<\[]\|?(?:token_)?({'|'.join(ACTIONS)})(?:_token)?\|?[>\]]$", re.IGNORECASE)


def check_special_tokens(
    family: str,
    executed: frozenset[str],
    config: Mapping[str, Any],
    generation_config: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
) -> None:
    """Checks the fields and the tokenizer's added tokens.

    Args:
        family: The family's name.
        executed: Names of ``ACTIONS`` that the family's decoder executes.
        config: ``config.json``, with what the user overrides; a null there says that the model
            does not write the token.
        generation_config: ``generation_config.json``.
        tokenizer: ``tokenizer_config.json``, its ``added_tokens_decoder`` included.

    Raises:
        ValueError: Names the token and where it is named.
    """
    dismissed = {f"{a}_token_id" for a in ACTIONS if config.get(f"{a}_token_id", "") is None}
    for action, token, where in _found(config, generation_config, tokenizer):
        if action not in executed and f"{action}_token_id" not in dismissed:
            null = json.dumps({f"{action}_token_id": None})
            raise ValueError(
                f"{where} has {token}: the model writes a token that changes the length of its canvas, "
                f"and the decoding of {family} does not execute it, so it would be returned as text. If the "
                f"model does not write it: --hf-overrides '{null}'."
            )


def _found(
    config: Mapping[str, Any], generation_config: Mapping[str, Any], tokenizer: Mapping[str, Any]
) -> Iterator[tuple[str, str, str]]:
    """Actions, the tokens or fields that stand for them, and the files."""
    named = (
        (config, "config.json"),
        (generation_config, "generation_config.json"),
        (tokenizer, "tokenizer_config.json"),
    )
    for fields, file in named:
        for name, value in fields.items():
            if (match := _FIELD.match(name)) and value is not None:
                yield match[1], f"{name}={value!r}", file
    for number, token in (tokenizer.get("added_tokens_decoder") or {}).items():
        text = token.get("content", "") if isinstance(token, Mapping) else str(token)
        if match := _TEXT.match(text):
            yield match[1].lower(), f"{text!r} (id {number})", "the tokenizer"
