# SPDX-License-Identifier: Apache-2.0
"""How the last delta of a stream marks whether its tool calls are complete."""

from __future__ import annotations

from vllm.entrypoints.generate.base.protocol import DeltaMessage


class ClosedCalls(DeltaMessage):
    """The last delta of an answer whose tool calls are complete."""


class OpenCalls(DeltaMessage):
    """The last delta of an answer that ends inside its only tool call."""
