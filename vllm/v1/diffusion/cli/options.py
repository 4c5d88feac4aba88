# SPDX-License-Identifier: Apache-2.0
"""The command line's decoding options: those of ``DiffusionParams``, with their help."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from vllm.v1.diffusion.policies.parameter import Parameter
from vllm.v1.diffusion.request.params import DiffusionParams, canonical, parameters

_OF_THE_COMMAND = (
    "trace", "trace_top_k", "stream", "stats", "likelihood", "score_from", "score_samples", "score_seed",
)  # fmt: skip
"""What the command itself asks for, or never does."""


def add_decoding_options(group: argparse._ArgumentGroup) -> None:
    """Declares an option for every parameter that a command line can write."""
    for name, one in _options().items():
        families = f" {', '.join(one.families)} only." if one.families else ""
        text = f"{one.meaning}{families} Default: {one.default_text}.".replace("`", "").replace("%", "%%")
        names = [f"--{written.replace('_', '-')}" for written in (name, *one.aliases)]
        group.add_argument(*names, dest=name, default=None, help=text, **_kind(one))
    group.add_argument(
        "--policy-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="A number that the --algorithm of another package declares; may be repeated.",
    )


def diffusion_params(args: argparse.Namespace) -> DiffusionParams:
    """The parameters that were given, and the trace that the command draws from.

    Raises:
        ValueError: Names the parameter or option that cannot be used.
    """
    given: dict[str, Any] = {name: getattr(args, name) for name in _options()}
    numbers: dict[str, Any] = {**_policy_numbers(args.policy_option, args.algorithm)}
    return DiffusionParams(**given, **numbers, trace=True)


def _policy_numbers(options: Sequence[str], algorithm: str | None) -> dict[str, float]:
    """Reads ``--policy-option``: the package that declares the numbers is imported later only."""
    numbers: dict[str, float] = {}
    for option in options:
        written, _, value = option.partition("=")
        name = written.replace("-", "_")
        problem = None
        if algorithm is None:
            problem = "needs --algorithm, which declares the number"
        elif canonical(name) in parameters():
            problem = f"has an option of its own, --{written.replace('_', '-')}"
        elif name in numbers:
            problem = "is given twice"
        try:
            number = float(value)
        except ValueError:
            problem = "must be NAME=VALUE, with a number as the value"
        if problem is not None:
            raise ValueError(f"--policy-option {option}: {problem}.")
        # A number that is declared as an integer takes no 3.0.
        numbers[name] = int(value) if value.strip().lstrip("+-").isdecimal() else number
    return numbers


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
