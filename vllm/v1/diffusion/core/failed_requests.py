# SPDX-License-Identifier: Apache-2.0
"""What the clients of requests are sent whose policy failed in a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from vllm.v1.diffusion.core.plan import RequestPlan
from vllm.v1.diffusion.message.failures import failure_in

if TYPE_CHECKING:
    from vllm.v1.outputs import ModelRunnerOutput


def failed_requests(
    plans: Mapping[str, RequestPlan], request_ids: Iterable[str], runner_output: ModelRunnerOutput
) -> dict[str, str]:
    """What to tell the clients of requests whose policy failed in a step.

    Args:
        plans: How the requests are denoised; others have ended.
        request_ids: The requests that denoised.
        runner_output: The step's output.
    """
    failed: dict[str, str] = {}
    trace = runner_output.unmask_trace
    if trace is None:
        return failed
    for request_id in request_ids:
        plan = plans.get(request_id)
        why = failure_in(trace[runner_output.req_id_to_index[request_id]]) if plan else None
        if plan is not None and why is not None:
            name = plan.decoding.algorithm
            failed[request_id] = f"diffusion_algorithm={name!r}: {why} (request {request_id})"
    return failed
