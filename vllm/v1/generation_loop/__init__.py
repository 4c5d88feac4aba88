# SPDX-License-Identifier: Apache-2.0
"""Generation loops: how requests advance, in the processes where the model lives.

This package is a public interface. A plug-in subclasses :class:`GenerationLoop`
and is found by the entry-point group ``vllm.generation_loops`` or by a dotted
path; ``docs/design.md`` says which process calls which method.
"""

from vllm.v1.generation_loop.interface import GENERATION_LOOP_API, GenerationLoop
from vllm.v1.generation_loop.registry import (
    configure_generation_loop,
    get_generation_loop,
    known_generation_loops,
)

__all__ = [
    "GENERATION_LOOP_API",
    "GenerationLoop",
    "configure_generation_loop",
    "get_generation_loop",
    "known_generation_loops",
]
