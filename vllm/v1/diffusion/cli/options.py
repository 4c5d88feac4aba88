# SPDX-License-Identifier: Apache-2.0
"""The command line's decoding options: those of ``DiffusionParams``, with their help."""

from __future__ import annotations

import argparse
from typing import Any

from vllm.v1.diffusion.policies.parameter import Parameter
from vllm.v1.diffusion.request.params import DiffusionParams, parameters

_OF_THE_COMMAND = ("trace", "stats", "likelihood", "score_from")
"""What the command itself asks for, or never does."""


def add_decoding_options(group: argparse._ArgumentGroup) -> None:
    """Declares an option for every parameter that a command line can write."""
    for name, one in _options().items():
        families = f" {', '.join(one.families)} only." if one.families else ""
        text = f"{one.meaning}{families} Default: {one.default_text}.".replace("`", "").replace("%", "%%")
        names = [f"--{written.replace('_', '-')}" for written in (name, *one.aliases)]
        group.add_argument(*names, dest=name, default=None, help=text, **_kind(one))


def diffusion_params(args: argparse.Namespace) -> DiffusionParams:
    """The parameters that were given, and the trace that the command draws from."""
    return DiffusionParams(**{name: getattr(args, name) for name in _options()}, trace=True)


def _options() -> dict[str, Parameter]:
    known = parameters().items()
    return {name: one for name, one in known if name not in _OF_THE_COMMAND and _kind(one)}


def _kind(one: Parameter) -> dict[str, Any]:
    """How argparse reads a parameter's values; empty for lists, which it cannot."""
    kinds: dict[str, dict[str, Any]] = {
        "integer": {"type": int, "metavar": "N"},
        "number": {"type": float, "metavar": "X"},
        "boolean": {"action": "store_true"},
        "string": {"metavar": "NAME"},
    }
    return kinds.get(one.schema["type"], {})
