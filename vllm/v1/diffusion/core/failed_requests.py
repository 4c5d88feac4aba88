# SPDX-License-Identifier: Apache-2.0
"""What the clients of requests are sent whose policy failed in a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vllm.v1.diffusion.core.plan import RequestPlan

if TYPE_CHECKING:
    from vllm.v1.outputs import ModelRunnerOutput


def failed_requests(plans: Mapping[str, RequestPlan], runner_output: ModelRunnerOutput) -> dict[str, str]:
    """What to tell the clients of requests whose policy failed in a step.

    Args:
        plans: How the requests are denoised; others have ended.
        runner_output: The step's output.
    """
    failures = runner_output.policy_failures or {}
    return {
        request_id: f"diffusion_algorithm={plan.decoding.algorithm!r}: {why} (request {request_id})"
        for request_id, why in failures.items()
        if (plan := plans.get(request_id)) is not None
    }
