# SPDX-License-Identifier: Apache-2.0
"""Calls into a plug-in on all tensor-parallel ranks: where one raises, all do.

A rank that raises alone would leave the others waiting in the model. So whenever a plug-in calls the
model or returns, the ranks first exchange what they are about to do, in one small
message between hosts that waits for no device. A single rank sends none, nor does a built-in loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from vllm.distributed import parallel_state
from vllm.logger import init_logger
from vllm.v1.generation_loop import stages
from vllm.v1.generation_loop.errors import GenerationLoopError, describe, message_of

logger = init_logger(__name__)

T = TypeVar("T")

_RETURNS, _CALLS, _FAILED = range(3)
"""What a rank is about to do."""


def call_on_all_ranks(loop: str, method: str, call: Callable[[], T], fallback: Callable[[], T]) -> T:
    """Calls into a plug-in on every rank.

    Args:
        loop: The loop's name.
        method: The method that is called.
        call: Calls it.
        fallback: What the step goes on with where it has failed and other pipeline stages wait.

    Raises:
        GenerationLoopError: It raised, on whichever rank; or the ranks made different calls of
            the model.
    """
    global _current
    if _current is not None:  # A plug-in calls a method of its own.
        return call()
    if stages.failed():
        return fallback()
    plugin_call = _current = _PluginCall(loop, method)
    failure = None
    try:
        result = call()
    except Exception as error:
        logger.exception("A plug-in failed.")
        failure = message_of(error) or describe(loop, method, error)
    finally:
        _current = None
    plugin_call.agree(_RETURNS if failure is None else _FAILED, failure)
    if plugin_call.failure is not None:
        if stages.defer_failure(plugin_call.failure):
            return fallback()
        raise GenerationLoopError(plugin_call.failure)
    return result


def watch(model: nn.Module) -> None:
    """Has a plug-in's calls of a model announced, where there are other ranks.

    Args:
        model: The model. Calls of it, its head, its layers and what stands between them are seen;
            a compiled module's inside is not.
    """
    if _ranks() is not None:
        for module in dict.fromkeys((*_outer(model), *_heads(model))):
            module.register_forward_pre_hook(_before)
            module.register_forward_hook(_after, always_call=True)


def gathered(failures: dict[int, str]) -> dict[int, str]:
    """Failures of all tensor-parallel ranks, each of which must call it, by request.

    Args:
        failures: This rank's.
    """
    ranks = _ranks()
    if ranks is None:
        return failures
    theirs: list[dict[int, str]] = [{}] * ranks.world_size
    dist.all_gather_object(theirs, failures, group=ranks.cpu_group)
    return {request: why for some in reversed(theirs) for request, why in some.items()}


class _PluginCall:
    """One call into a plug-in, on this rank.

    Attributes:
        failure: What went wrong on any rank, once all know of it.
        depth: How many watched modules are being called; inside one, nothing is announced.
    """

    def __init__(self, loop: str, method: str) -> None:
        self.loop = loop
        self.method = method
        self.ranks = _ranks()
        self.failure: str | None = None
        self.depth = 0

    def agree(self, intent: int, failure: str | None = None) -> None:
        """Exchanges with the other ranks what each is about to do.

        Once a failure is known, all ranks are on their way out and exchange nothing more.
        """
        if self.failure is not None:
            return
        if self.ranks is None:
            self.failure = failure
            return
        extremes = torch.tensor([intent, -intent], dtype=torch.int32)
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=self.ranks.cpu_group)
        most, least = int(extremes[0]), -int(extremes[1])
        if most == _FAILED:
            failures: list[str | None] = [None] * self.ranks.world_size
            dist.all_gather_object(failures, failure, group=self.ranks.cpu_group)
            self.failure = next(f for f in failures if f is not None)
        elif most != least:
            self.failure = (
                f"generation_loop={self.loop!r}: {self.method}() called the model on one tensor-parallel "
                "rank and returned on another; all ranks must make the same calls"
            )


_current: _PluginCall | None = None
"""The call into a plug-in that this process is in."""


def _before(module: nn.Module, arguments: Any) -> None:
    if (plugin_call := _current) is not None:
        plugin_call.depth += 1
        if plugin_call.depth == 1:
            plugin_call.agree(_CALLS)
            if plugin_call.failure is not None:
                raise GenerationLoopError(plugin_call.failure)


def _after(module: nn.Module, arguments: Any, output: Any) -> None:
    if (plugin_call := _current) is not None:
        plugin_call.depth -= 1


def _outer(module: nn.Module) -> Iterator[nn.Module]:
    """A module and those inside, as far down as its layers."""
    yield module
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        elif getattr(child, "do_not_compile", True):  # What is compiled is one call.
            yield from _outer(child)


def vocabulary(model: nn.Module) -> int | None:
    """How many logits a row has; None for a model with a head of its own kind."""
    head = next(_heads(model), None)
    return None if head is None else int(head.org_vocab_size)


def _heads(model: nn.Module) -> Iterator[Any]:
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    return (module for module in model.modules() if isinstance(module, LogitsProcessor))


def _ranks() -> parallel_state.GroupCoordinator | None:
    """The tensor-parallel ranks; None for one alone."""
    if not stages.parallel():
        return None
    group = parallel_state.get_tp_group()
    return group if group.world_size > 1 else None
