# SPDX-License-Identifier: Apache-2.0
"""Windows of canvases whose answer grows and shrinks: always as long as it may become."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from vllm.v1.diffusion.core.bidirectional import CanvasPlanner

if TYPE_CHECKING:
    from vllm.v1.diffusion.core.plan import RequestPlan
    from vllm.v1.request import Request


class ElasticPlanner(CanvasPlanner):
    """Ends a request with its only block, however long that is."""

    @override
    def emits(self, request: Request, plan: RequestPlan, count: int) -> None:
        if count:
            request.max_tokens = request.num_output_tokens + count
