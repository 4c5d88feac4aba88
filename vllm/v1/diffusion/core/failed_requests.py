# SPDX-License-Identifier: Apache-2.0
"""What the clients of requests are sent whose policy or grammar failed in a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vllm.v1.diffusion.core.plan import RequestPlan

if TYPE_CHECKING:
    from vllm.v1.outputs import ModelRunnerOutput

GRAMMAR = "structured_outputs: "
"""What a grammar's failure begins with."""


def failed_requests(plans: Mapping[str, RequestPlan], runner_output: ModelRunnerOutput) -> dict[str, str]:
    """What to tell the clients of requests whose policy or grammar failed in a step.

    Nothing is emitted of such a step: a block that has finished is not what was asked for.

    Args:
        plans: How the requests are denoised; others have ended.
        runner_output: The step's output, changed.
    """
    failed = {}
    for request_id, why in (runner_output.policy_failures or {}).items():
        if (plan := plans.get(request_id)) is None:
            continue
        of_grammar = why.startswith(GRAMMAR)
        said = why if of_grammar else f"diffusion_algorithm={plan.decoding.algorithm!r}: {why}"
        failed[request_id] = f"{said} (request {request_id})"
        if of_grammar:
            runner_output.sampled_token_ids[runner_output.req_id_to_index[request_id]] = []
    return failed
