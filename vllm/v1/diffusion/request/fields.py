# SPDX-License-Identifier: Apache-2.0
"""How a wrong parameter of a request is refused: its name, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.v1.diffusion.policies.parameter import PREFIX


class ParameterError(VLLMValidationError, ValueError):
    """A request's parameter is wrong: HTTP 400, ``ValueError`` in Python."""


def require(valid: bool, name: str, value: Any, message: str) -> None:
    """Raises :class:`ParameterError` unless a parameter's value is valid.

    Args:
        valid: Whether it is.
        name: The parameter, without the prefix.
        value: Its value.
        message: What must hold; reads after the value.
    """
    if not valid:
        raise ParameterError(f"{PREFIX}{name}={value!r} {message}.", parameter=PREFIX + name, value=value)


@contextmanager
def naming(name: str, value: Any) -> Iterator[None]:
    """Makes a ``ValueError`` within it a :class:`ParameterError` with the same message.

    Args:
        name: The parameter, without the prefix.
        value: Its value.
    """
    try:
        yield
    except ValueError as error:
        raise ParameterError(str(error), parameter=PREFIX + name, value=value) from error
