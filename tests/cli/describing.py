# SPDX-License-Identifier: Apache-2.0
"""What ``vllm diffuse --describe`` says, without a process."""

from __future__ import annotations

import argparse
import json
from typing import Any

from vllm.v1.diffusion.cli.describe import describe
from vllm.v1.diffusion.request.params import parameters


def arguments(**given: Any) -> argparse.Namespace:
    """The command's arguments with their defaults."""
    names = (
        "describe",
        "model",
        "bundled",
        "max_model_len",
        *parameters(),
    )
    defaults: dict[str, Any] = dict.fromkeys(names) | {"dtype": "auto", "json": True, "verbose": False}
    defaults["policy_option"] = []
    return argparse.Namespace(**defaults | given)


def described(**given: Any) -> dict[str, tuple[Any, str]]:
    """Value and source of every setting."""
    return {name: (s["value"], s["source"]) for name, s in json.loads(describe(arguments(**given))).items()}
