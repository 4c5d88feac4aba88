# SPDX-License-Identifier: Apache-2.0
"""What the last delta of a stream is where the calls of tools before it are whole."""

from __future__ import annotations

from vllm.entrypoints.generate.base.protocol import DeltaMessage


class ClosedCalls(DeltaMessage):
    """The last delta of an answer whose calls of tools are whole."""
