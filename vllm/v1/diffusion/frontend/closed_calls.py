# SPDX-License-Identifier: Apache-2.0
"""What the last delta of a stream says of the calls of tools before it."""

from __future__ import annotations

from vllm.entrypoints.generate.base.protocol import DeltaMessage


class ClosedCalls(DeltaMessage):
    """The last delta of an answer in which the whole of it has calls."""


class OpenCalls(DeltaMessage):
    """The last delta of an answer that ends inside its only call."""
