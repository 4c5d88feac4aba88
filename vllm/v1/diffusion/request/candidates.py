# SPDX-License-Identifier: Apache-2.0
"""``diffusion_trace_top_k``: what each step would have written at each open position."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.v1.diffusion.policies.parameter import PREFIX
from vllm.v1.diffusion.request.fields import require

if TYPE_CHECKING:
    from vllm.v1.diffusion.config import MaskedDiffusionConfig
    from vllm.v1.diffusion.policies import UnmaskingPolicy
    from vllm.v1.diffusion.request.decoding import Decoding
    from vllm.v1.diffusion.request.params import DiffusionParams

MOST_PER_STEP = 16384
"""Most candidates of one request that a step may send to the host, at all columns of the canvas."""

_NAME = "trace_top_k"


def asked_candidates(given: DiffusionParams, algorithm: str, policy: UnmaskingPolicy) -> int:
    """How many candidates a request wants of each step, where they would say something of its tokens.

    Args:
        given: The request's parameters.
        algorithm: Its algorithm.
        policy: The algorithm's policy.

    Raises:
        ParameterError: Its steps have none, or it asks for no trace.
    """
    count = given.trace_top_k or 0
    if not count:
        return 0
    require(bool(given.trace), _NAME, count, f"has no effect without {PREFIX}trace")
    for refused, why in (
        (policy.speculates, "a token is drafted in one step and verified in another"),
        (policy.redraws or policy.elastic, "tokens move after the step that wrote them"),
    ):
        reason = f"is not supported with {PREFIX}algorithm={algorithm!r}: {why}"
        require(not refused, _NAME, count, reason)
    return count


def check_candidates(decoding: Decoding, max_tokens: int, config: MaskedDiffusionConfig) -> None:
    """Refuses more candidates than a step may send, or an answer may hold.

    Args:
        decoding: How the request is to be denoised.
        max_tokens: Most tokens of its answer.
        config: The engine's resolved configuration.

    Raises:
        ParameterError: Names ``diffusion_trace_top_k``.
    """
    from vllm.v1.diffusion.config import limit_of

    if not (count := decoding.candidates):
        return
    assert config.canvas_length is not None
    most = max(1, MOST_PER_STEP // config.canvas_length)
    where = f"on an engine whose canvases have {config.canvas_length} positions"
    require(count <= most, _NAME, count, f"must be at most {most} {where}")
    steps = min(decoding.steps, decoding.max_steps or decoding.steps) * decoding.open_blocks
    limit = limit_of(config, "candidates_limit")
    work = f"for {max_tokens} tokens in up to {steps} steps each"
    most = limit // (max_tokens * steps)
    require(
        count <= most,
        _NAME,
        count,
        f"must be at most {most} {work} (candidates_limit={limit} of --diffusion-config)",
    )
