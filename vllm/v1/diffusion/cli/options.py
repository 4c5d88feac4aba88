# SPDX-License-Identifier: Apache-2.0
"""The command line's decoding options: those of ``DiffusionParams``, with their help."""

from __future__ import annotations

import argparse
from typing import Any

from vllm.v1.diffusion.request.fields import Flag, Name, Number, Text, parameters
from vllm.v1.diffusion.request.params import DiffusionParams

_OF_THE_COMMAND = ("trace", "stats")
"""What the command itself asks for."""


def add_decoding_options(group: argparse._ArgumentGroup) -> None:
    """Declares an option for every parameter that a command line can write."""
    for one in parameters(DiffusionParams):
        if (kind := _kind(one.name, one.allowed)) is not None:
            families = f" {', '.join(one.families)} only." if one.families else ""
            text = f"{one.meaning}{families} Default: {one.default}.".replace("`", "").replace("%", "%%")
            group.add_argument(f"--{one.name.replace('_', '-')}", default=None, help=text, **kind)


def diffusion_params(args: argparse.Namespace) -> DiffusionParams:
    """The parameters that were given, and the trace that the command draws from."""
    names = [one.name for one in parameters(DiffusionParams) if _kind(one.name, one.allowed) is not None]
    return DiffusionParams(**{name: getattr(args, name) for name in names}, trace=True)


def _kind(name: str, allowed: object) -> dict[str, Any] | None:
    """How argparse reads a parameter's values; None for those that it cannot."""
    if name in _OF_THE_COMMAND:
        return None
    if isinstance(allowed, Number):
        return {"type": int if allowed.whole else float, "metavar": "N" if allowed.whole else "X"}
    if isinstance(allowed, Flag):
        return {"action": "store_true"}
    if isinstance(allowed, Text | Name):
        return {"metavar": "NAME"}
    return None
