# SPDX-License-Identifier: Apache-2.0
"""A setting that is resolved: its value, and where it comes from."""

from __future__ import annotations

from typing import Any, NamedTuple


class Setting(NamedTuple):
    """A resolved setting.

    Attributes:
        value: The value; None where the setting does not apply or is open.
        source: Where it comes from.
    """

    value: Any
    source: str


GIVEN, MODEL, GENERATION, TOKENIZER, TABLE, DEFAULT = (
    "--diffusion-config", "config.json", "generation_config.json", "tokenizer", "family table", "default",
)  # fmt: skip


def first(*candidates: tuple[Any, str]) -> Setting:
    """The first candidate that has a value; else the last one."""
    return Setting(*next((c for c in candidates if c[0] is not None), candidates[-1]))
