# SPDX-License-Identifier: Apache-2.0
"""The engine core after a plug-in's failure: its requests fail, the engine goes on."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from vllm.logger import init_logger
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import Request, RequestStatus

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.engine.core import EngineCore

logger = init_logger(__name__)

_NULL_BLOCK = 0
"""The KV block that stands for none; many requests may hold it."""


@dataclass(frozen=True)
class Snapshot:
    """What a scheduler held before a step.

    Attributes:
        requests: Its requests, by id.
        finished: Ended requests of which the workers had not been informed.
    """

    requests: dict[str, Request] = field(default_factory=dict)
    finished: frozenset[str] = frozenset()

    @classmethod
    def of(cls, core: EngineCore) -> Snapshot:
        """Reads a core's scheduler, which may be of any class."""
        scheduler = core.scheduler
        return cls(
            dict(getattr(scheduler, "requests", {})), frozenset(getattr(scheduler, "finished_req_ids", ()))
        )


def fail_batch(core: EngineCore, message: str, before: Snapshot) -> dict[int, EngineCoreOutputs]:
    """Fails the requests of the step that raised, and those that build on it.

    A failed step leaves its requests half advanced in the workers, and KV blocks
    that are hashed but were never written. So all its requests end; the workers forget
    them with the next step, and the prefix cache is emptied.

    Args:
        core: The engine core; its ``failed_batch`` is the step, if one reached the executor.
            Without it every running request fails, and where none runs, all do.
        message: Why, for the clients.
        before: What the scheduler held before the step.

    Returns:
        Outputs by client index, as a step returns them.
    """
    scheduler: Any = core.scheduler
    batch = take_failed_batch(core)
    running: list[Request] = list(getattr(scheduler, "running", ()))
    if batch is not None:
        failed = {*batch.num_scheduled_tokens, *_lost(core, running)}
    else:
        failed = {request.request_id for request in running}
    # Blocks are hashed when a step is scheduled: one that raised anywhere behind that did not write them.
    failed |= _forget_blocks(scheduler, running, failed)
    _inform_workers(scheduler, before)
    return _fail_requests(core, failed or None, message, before)


def take_failed_batch(core: Any) -> SchedulerOutput | None:
    """The step that raised in the executor, once; None where none did."""
    batch: SchedulerOutput | None = getattr(core, "failed_batch", None)
    core.failed_batch = None
    return batch


def fail_refused(core: EngineCore) -> dict[int, EngineCoreOutputs]:
    """Answers the requests that a plug-in's scheduler could not take."""
    outputs: defaultdict[int, list[EngineCoreOutput]] = defaultdict(list)
    for request, message in getattr(core.scheduler, "refused", ()):
        outputs[request.client_index].append(_failed(request, message))
    if outputs:
        cast(Any, core.scheduler).refused = []
    return {client: EngineCoreOutputs(outputs=some) for client, some in outputs.items()}


def _failed(request: Request, message: str) -> EngineCoreOutput:
    reason = f"{message} (request {request.request_id})"
    return EngineCoreOutput(request.request_id, [], finish_reason=FinishReason.ERROR, stop_reason=reason)


def _fail_requests(
    core: EngineCore, request_ids: set[str] | None, message: str, before: Snapshot
) -> dict[int, EngineCoreOutputs]:
    """Ends these requests, or all where None, with an error; outputs by client index."""
    scheduler: Any = core.scheduler
    left = getattr(scheduler, "requests", before.requests)
    # The step ended them itself, and the output that says so was lost with it.
    ended = [request for request_id, request in before.requests.items() if request_id not in left]
    ended += scheduler.finish_requests(request_ids, RequestStatus.FINISHED_ERROR)
    outputs: defaultdict[int, list[EngineCoreOutput]] = defaultdict(list)
    for request in ended:
        outputs[request.client_index].append(_failed(request, message))
    logger.error("%s. Failed requests: %s.", message, ", ".join(r.request_id for r in ended) or "none")
    return {
        client: EngineCoreOutputs(outputs=some, finished_requests={output.request_id for output in some})
        for client, some in outputs.items()
    }


def _inform_workers(scheduler: Any, before: Snapshot) -> None:
    """Has the workers free what a plan that never reached them would have had them free.

    They ignore an id that they do not know.
    """
    finished: set[str] | None = getattr(scheduler, "finished_req_ids", None)
    if finished is not None:
        finished |= before.finished
        requests: dict[str, Request] = getattr(scheduler, "requests", {})
        finished.update(r.request_id for r in requests.values() if r.status == RequestStatus.PREEMPTED)


def _lost(core: EngineCore, running: list[Request]) -> set[str]:
    """Requests with a step in flight whose output no one waits for.

    Upstream holds a step back whose grammar depends on the step before it; where that
    one raises, the step held back is forgotten.
    """
    awaited = {r for _, batch, _ in core.batch_queue or () for r in batch.num_scheduled_tokens}
    return {r.request_id for r in running if r.num_in_flight_tokens > 0 and r.request_id not in awaited}


def _forget_blocks(scheduler: Any, running: list[Request], failed: set[str]) -> set[str]:
    """Empties the prefix cache, which holds blocks that the failed step did not write.

    Returns:
        Further requests that have already been given such a block.
    """
    manager = getattr(scheduler, "kv_cache_manager", None)
    if manager is None:
        return set()
    config = scheduler.kv_cache_config
    unwritten: set[int] = set()
    for request in running:
        if request.request_id in failed:
            written = max(0, request.num_computed_tokens - request.num_in_flight_tokens)
            blocks = manager.get_block_ids(request.request_id)
            for group, ids in zip(config.kv_cache_groups, blocks, strict=True):
                unwritten.update(ids[written // group.kv_cache_spec.block_size :])
    unwritten.discard(_NULL_BLOCK)
    manager.evict_blocks(set(range(config.num_blocks)))
    return {
        request.request_id
        for request in running
        if any(unwritten.intersection(ids) for ids in manager.get_block_ids(request.request_id))
    }
