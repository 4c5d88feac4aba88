# SPDX-License-Identifier: Apache-2.0
"""What the scheduler tells the worker of a new request, beyond upstream's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.v1.core.sched.output import NewRequestData


@dataclass
class DiffusionRequestData(NewRequestData):
    """A request with a grammar: whether reasoning comes before it.

    Attributes:
        reasoning_ended: Whether the prompt ends the reasoning; None if nobody looked.
        reasoning_parser_kwargs: The reasoning parser's arguments.
    """

    reasoning_ended: bool | None = None
    reasoning_parser_kwargs: dict[str, Any] | None = None
