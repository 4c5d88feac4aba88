# SPDX-License-Identifier: Apache-2.0
"""KV blocks are asked for once, not at every step that computes the same positions.

Some requests are admitted with the KV blocks of their whole answer, so they are never preempted for them:
those whose windows all reach to the end of the canvas, which is never denoised twice, and those that would
write other tokens after a preemption.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from vllm.v1.diffusion.core.plan import RequestPlan

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
    from vllm.v1.request import Request


class WindowKVBlocks:
    """Upstream's ``allocate_slots``, without the calls that would change nothing.

    A block of the canvas is computed again at every step, so most windows end in a KV
    block that their request holds, and complete none that could be found by its prefix. Only
    where all layers share one kind of cache.
    """

    def __init__(
        self, cache_manager: KVCacheManager, plans: Mapping[str, RequestPlan], block_size: int | None
    ) -> None:
        """Makes it.

        Args:
            cache_manager: Upstream's manager.
            plans: The requests' plans, which remember what was asked for.
            block_size: Tokens of a KV block; None where layers have several kinds of cache.
        """
        self._allocate: Callable[..., KVCacheBlocks | None] = cache_manager.allocate_slots
        self._nothing_new = cache_manager.empty_kv_cache_blocks
        self._plans = plans
        self._block_size = block_size

    def __call__(
        self, request: Request, num_new_tokens: int, *, num_lookahead_tokens: int = 0, **more: Any
    ) -> KVCacheBlocks | None:
        """See upstream; with arguments beside these, which only requests that begin have, it is asked."""
        plan, size = self._plans[request.request_id], self._block_size
        if more or size is None:
            found = more.get("num_new_computed_tokens", 0)
            end = request.num_computed_tokens + found + num_new_tokens
            ahead = max(num_lookahead_tokens, plan.reserved - end)
            return self._allocate(request, num_new_tokens, num_lookahead_tokens=ahead, **more)
        end = request.num_computed_tokens + num_new_tokens
        known = min(end, request.num_tokens)
        final = min(known, plan.grid.computed(end, request.num_tokens))
        held = (-(-(end + num_lookahead_tokens) // size), final // size)
        if plan.kv_blocks == held:
            return self._nothing_new
        # What a window holds and does not make final must not be found by its prefix yet.
        delay = {"delay_cache_blocks": True} if final // size < known // size else {}
        blocks = self._allocate(request, num_new_tokens, num_lookahead_tokens=num_lookahead_tokens, **delay)
        if blocks is not None:
            plan.kv_blocks = held
        return blocks
