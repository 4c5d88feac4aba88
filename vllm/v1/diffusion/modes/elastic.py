# SPDX-License-Identifier: Apache-2.0
"""Bidirectional models that insert masks into their answer and delete tokens of it (DreamOn).

The engine core reserves a window for the longest answer. Only the worker knows how long the answer is. Rows
behind its end are computed, and no position sees them.
"""

from __future__ import annotations

from dataclasses import replace

from vllm.v1.diffusion.modes.base import Part
from vllm.v1.diffusion.modes.bidirectional import BIDIRECTIONAL
from vllm.v1.diffusion.modes.grid import BlockRule, nothing

ELASTIC = replace(
    BIDIRECTIONAL,
    name="elastic",
    blocks=BlockRule(from_prompt=True, cut=True, final=nothing, elastic=True),
    planner=Part("vllm.v1.diffusion.core.elastic.ElasticPlanner"),
    rows=Part("vllm.v1.diffusion.worker.elastic.ElasticRows"),
    attention=Part("vllm.v1.diffusion.worker.elastic.ElasticAttention"),
    settings=Part("vllm.v1.diffusion.loops.elastic.ElasticSettings"),
    unscored="tokens are inserted and deleted, so the likelihood of a text is no product over its tokens",
)
