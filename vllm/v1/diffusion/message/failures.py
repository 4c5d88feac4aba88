# SPDX-License-Identifier: Apache-2.0
"""How a worker tells the scheduler that a request's policy failed, and why.

What a worker reports of a request is its trace, ``[W, 2]`` numbers. A step in it is never
positive: a failed request's trace begins with ``FAILED`` and goes on with the message's characters.
"""

from __future__ import annotations

from typing import Any

import torch

FAILED = 1
"""Stands in a trace in the place of a step, where a request's policy failed."""

_LONGEST = 500
"""Characters of a message."""


def with_failures(trace: torch.Tensor, failures: dict[int, str]) -> torch.Tensor:
    """A step's traces with the messages of failed requests.

    Args:
        trace: Traces, float32 ``[requests, W, 2]``.
        failures: Messages, by request.

    Returns:
        Traces, ``[requests, W', 2]``, W' at least W.
    """
    rows = {i: [FAILED, *map(ord, message[:_LONGEST]), 0] for i, message in failures.items()}
    count, width, fields = trace.shape
    longest = max((len(row) for row in rows.values()), default=0)
    wide = trace.new_zeros(count, max(width, -(-longest // fields)), fields)
    wide[:, :width] = trace
    for i, row in rows.items():
        wide[i].view(-1)[: len(row)] = trace.new_tensor(row)
    return wide


def failure_in(trace: Any) -> str | None:
    """The message of a request that failed; None for one that did not.

    Args:
        trace: The request's trace on the host, ``[W, 2]``.
    """
    if trace[0, 0] != FAILED:
        return None
    characters = trace.reshape(-1)[1:]
    return "".join(chr(int(c)) for c in characters[: (characters == 0).argmax()])
