# SPDX-License-Identifier: Apache-2.0
"""Values that no engine can take, wherever they stand in a request.

An integer crosses to the engine core in 64 bits, and a text is encoded in UTF-8 before it is split into
tokens. What fails at either has no name there any more, and may have left traces of its request.
"""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any

from pydantic import BaseModel

from vllm.v1.diffusion.request.fields import ParameterError

_INT64 = range(-(2**63), 2**63)
_SHOWN = 40
"""Characters of a text that an error shows."""


def check_values(value: Any, name: str) -> None:
    """Refuses integers beyond 64 bits and texts with halves of surrogate pairs.

    Args:
        value: A field's value; lists, dictionaries and models are searched.
        name: The field.

    Raises:
        ParameterError: Names the place of the first such value.
    """
    if isinstance(value, str):
        if not value.isascii():
            _check_text(value, name)
    elif isinstance(value, int):
        if value not in _INT64:
            message = f"{name} must be an integer of at most 64 bits, not one of {value.bit_length()}."
            raise ParameterError(message, parameter=name, value=f"({value.bit_length()} bits)")
    elif isinstance(value, dict):
        for key, one in value.items():
            check_values(key, name)
            check_values(one, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        # Ids of tokens, of which there may be many.
        if not all(type(one) is int and one in _INT64 for one in value):
            for i, one in enumerate(value):
                check_values(one, f"{name}[{i}]")
    elif is_dataclass(value):
        check_values(vars(value), name)
    elif isinstance(value, BaseModel):
        for key, one in value:
            check_values(one, f"{name}.{key}" if name else key)


def _check_text(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        shown = text[:_SHOWN].encode(errors="backslashreplace").decode()
        place = f"{text[error.start]!a} at character {error.start}"
        raise ParameterError(
            f"{name} has half of a surrogate pair, {place}, which no text in UTF-8 has.",
            parameter=name.encode(errors="backslashreplace").decode(),
            value=shown,
        ) from None
