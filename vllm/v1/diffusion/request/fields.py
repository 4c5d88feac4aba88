# SPDX-License-Identifier: Apache-2.0
"""What a request parameter is: one record that documents it and checks its values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

from vllm.exceptions import VLLMValidationError

PREFIX = "diffusion_"
_KEY = "parameter"


class ParameterError(VLLMValidationError, ValueError):
    """A request's parameter is wrong: HTTP 400, ``ValueError`` in Python."""


@dataclass(frozen=True)
class Number:
    """Numbers of a range; without bounds, any.

    Attributes:
        low: The least value.
        above: What a value must exceed.
        high: The greatest value.
        whole: Whether only integers are meant.
    """

    low: float | None = None
    above: float | None = None
    high: float | None = None
    whole: bool = False

    def __contains__(self, value: object) -> bool:
        """Whether a value is allowed; no boolean is a number here, nor is NaN."""
        kind = int if self.whole else (int | float)
        if not isinstance(value, kind) or isinstance(value, bool) or value != value:
            return False
        return (
            (self.low is None or value >= self.low)
            and (self.above is None or value > self.above)
            and (self.high is None or value <= self.high)
        )

    def __str__(self) -> str:
        """Reads after "must be"."""
        noun = "an integer" if self.whole else "a number"
        bounds = []
        if self.above is not None:
            bounds.append(f"above {self.above:g}")
        if self.low is not None and self.high is not None:
            bounds.append(f"from {self.low:g} to {self.high:g}")
        elif self.low is not None:
            bounds.append(f"of at least {self.low:g}")
        elif self.high is not None:
            bounds.append(f"of at most {self.high:g}")
        return " ".join([noun, *bounds])


@dataclass(frozen=True)
class Flag:
    """True or false; the server's ``vllm_xargs`` turn them into 1 and 0."""

    def __contains__(self, value: object) -> bool:
        """Whether a value is allowed."""
        return isinstance(value, bool | int) and value in (0, 1)

    def __str__(self) -> str:
        """Reads after "must be"."""
        return "true or false"


@dataclass(frozen=True)
class Text:
    """Strings.

    Attributes:
        meaning: What the string must be; reads after "must be".
    """

    meaning: str = "a string"

    def __contains__(self, value: object) -> bool:
        """Whether a value is allowed."""
        return isinstance(value, str)

    def __str__(self) -> str:
        """Reads after "must be"."""
        return self.meaning


@dataclass(frozen=True)
class Integers:
    """Lists of integers of at least 0.

    Attributes:
        meaning: What the integers are; reads after "must be a list of".
        least: The fewest that a list may hold.
    """

    meaning: str
    least: int = 0

    def __contains__(self, value: object) -> bool:
        """Whether a value is allowed."""
        if not isinstance(value, list | tuple) or len(value) < self.least:
            return False
        return all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in value)

    def __str__(self) -> str:
        """Reads after "must be"."""
        return f"a list of {self.meaning}"


@dataclass(frozen=True)
class Name:
    """One of a few names.

    Attributes:
        names: The names.
    """

    names: tuple[str, ...]

    def __contains__(self, value: object) -> bool:
        """Whether a value is allowed."""
        return value in self.names

    def __str__(self) -> str:
        """Reads after "must be"."""
        return f"one of {', '.join(self.names)}"


@dataclass(frozen=True)
class Parameter:
    """One parameter.

    Attributes:
        name: The field of ``DiffusionParams``.
        meaning: What it does: a sentence in Markdown.
        allowed: Its values: ``value in allowed``, and ``str(allowed)`` names them.
        default: What holds where it is not given.
        families: Names of the families it has an effect on; none stands for all.
    """

    name: str
    meaning: str
    allowed: Number | Flag | Text | Name | Integers
    default: str
    families: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Its name in ``extra_args`` and ``vllm_xargs``."""
        return PREFIX + self.name

    def check(self, value: Any) -> None:
        """Checks a value's type and range; None stands for not given.

        Raises:
            ParameterError: The value is not allowed.
        """
        require(value is None or value in self.allowed, self.name, value, f"must be {self.allowed}")


def parameter(
    meaning: str,
    allowed: Number | Flag | Text | Name | Integers,
    *,
    default: str,
    families: tuple[str, ...] = (),
) -> Any:
    """A dataclass field that is None by default and carries its :class:`Parameter`."""
    return field(default=None, metadata={_KEY: (meaning, allowed, default, families)})


def parameters(cls: Any) -> Iterator[Parameter]:
    """The parameters of a dataclass whose fields are made by :func:`parameter`, in order.

    Raises:
        KeyError: A field was made in another way.
    """
    for one in fields(cls):
        yield Parameter(one.name, *one.metadata[_KEY])


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
