# SPDX-License-Identifier: Apache-2.0
"""Refuses a ``config.json`` that asks for a computation that is not implemented."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from vllm.v1.diffusion.checkpoint.known_fields import (
    BOOKKEEPING,
    KNOWN_FIELDS,
    ROPE,
    ROPE_FIELDS,
    TRAINING,
    KnownFields,
)


def check_fields(family: str, config: Mapping[str, Any]) -> list[str]:
    """Checks every field of a configuration against the family's table.

    A field is refused if no table has it and it is set to anything but null, false, zero or
    nothing, or if it asks for a form that the family's network does not have.

    Args:
        family: The family's name in ``families.py``; one that has no table is a plug-in's.
        config: The file, with what the user overrides.

    Returns:
        Unknown fields that change nothing, for a log line.

    Raises:
        ValueError: Names every field that is refused.
    """
    known = KNOWN_FIELDS.get(family)
    if known is None:
        return []
    refused = dict(_refused(known, config))
    if refused:
        null = json.dumps({name.split(".")[0]: None for name in refused})
        raise ValueError(
            f"config.json is of another model than {family}: {'; '.join(refused.values())}. What the model "
            "computes may depend on it, so it is not loaded. A field without effect on this checkpoint can "
            f"be switched off: --hf-overrides '{null}'."
        )
    return sorted(name for name in config if not _is_known(known, name))


def _refused(known: KnownFields, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names of refused fields, and what is wrong with each."""
    for name, value in sorted(config.items()):
        said = f"{name}={_short(value)}"
        if name in known.fixed:
            if not _fits(value, known.fixed[name]):
                allowed = " or ".join(_short(one) for one in known.fixed[name])
                yield name, f"{said}, of which the family knows {allowed} only"
        elif name in known.nested and isinstance(value, Mapping):
            for inner, why in _refused(known.nested[name], value):
                yield f"{name}.{inner}", f"in {name} {why}"
        elif name in known.follows:
            if value is not None and value != (wanted := known.follows[name](config)):
                yield name, f"{said}, which must be {wanted}"
        elif name in ROPE_FIELDS and isinstance(value, Mapping):
            # One for each type of layers, or one for all.
            parts = value
            if value and all(isinstance(one, Mapping) for one in value.values()):
                parts = {part: inner for one in value.values() for part, inner in one.items()}
            for part, inner in sorted(parts.items()):
                if part not in ROPE and inner:
                    yield f"{name}.{part}", f"{name}.{part}={_short(inner)} is not known"
        elif not _is_known(known, name) and value:
            yield name, f"{said} is not known"


def _fits(value: Any, allowed: tuple[Any, ...]) -> bool:
    if isinstance(value, list) and value and value not in allowed:
        return all(one in allowed for one in value)
    # Integers pass for booleans in Python: 1 is no true here, 0 no false.
    return value is None or any(value == one and type(value) is type(one) for one in allowed)


def _is_known(known: KnownFields, name: str) -> bool:
    tables = (known.read, known.fixed, known.follows, known.unread, known.nested, BOOKKEEPING)
    return any(name in table for table in tables) or any(part in name for part in TRAINING)


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
