# SPDX-License-Identifier: Apache-2.0
"""Makes a plug-in's scheduler in the engine core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.generation_loop.guard import GuardedLoop
from vllm.v1.generation_loop.guarded_classes import GuardedScheduler, guarded
from vllm.v1.generation_loop.registry import get_generation_loop

if TYPE_CHECKING:
    from vllm.v1.core.sched.interface import SchedulerInterface


def make_scheduler(**kwargs: Any) -> SchedulerInterface:
    """Makes the scheduler of a plug-in's loop, in the engine core.

    Args:
        **kwargs: What upstream makes a scheduler from.
    """
    loop = get_generation_loop(kwargs["vllm_config"])
    assert isinstance(loop, GuardedLoop)
    cls = loop.resolved_scheduler(kwargs["vllm_config"])
    assert cls is not None
    return guarded(cls, loop.name, GuardedScheduler)(**kwargs)
