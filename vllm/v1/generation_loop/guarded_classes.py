# SPDX-License-Identifier: Apache-2.0
"""Names what the classes of a plug-in raise: its scheduler, model state and sampler."""

from __future__ import annotations

import functools
import inspect
from typing import Any, TypeVar

import torch

from vllm.logger import init_logger
from vllm.v1.generation_loop.errors import GenerationLoopError, describe
from vllm.v1.generation_loop.plug_ins import is_plug_in
from vllm.v1.generation_loop.ranks import call_on_all_ranks
from vllm.v1.request import Request, RequestStatus

logger = init_logger(__name__)

T = TypeVar("T")

_CALLED = ("__init__", "__call__")


def guarded(cls: type[T], loop: str, *mixins: type) -> type[T]:
    """A subclass whose methods raise a :class:`GenerationLoopError` that names them.

    Args:
        cls: The class. One that is not a plug-in's is returned as it is.
        loop: The loop's name.
        *mixins: Bases that come before it.
    """
    if not is_plug_in(cls):
        return cls
    methods = {
        name: (_logging if name == "remove_request" else _naming)(
            getattr(cls, name), f"{cls.__name__}.{name}", loop
        )
        for owner in cls.__mro__
        if owner is not object and is_plug_in(owner)
        for name, function in vars(owner).items()
        if inspect.isfunction(function) and (not name.startswith("_") or name in _CALLED)
    }
    named = type(cls.__name__, (cls,), {**methods, "__module__": cls.__module__})
    return type(cls.__name__, (*mixins, named), {"__module__": cls.__module__, "loop_name": loop})


def _naming(method: Any, name: str, loop: str) -> Any:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return call_on_all_ranks(
                loop, name, lambda: _checked(name, method(*args, **kwargs)), lambda: _fallback(name, args)
            )
        except GenerationLoopError:
            raise
        except Exception as error:  # Of a method that a plug-in's other method called.
            raise GenerationLoopError(describe(loop, name, error)) from error

    return call


def _logging(method: Any, name: str, loop: str) -> Any:
    """Of a request that has ended: no other fails for it, and the runner takes its slot back."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> None:
        try:
            method(*args, **kwargs)
        except Exception as error:
            logger.exception("%s", describe(loop, name, error))

    return call


def _checked(name: str, result: Any) -> Any:
    """A method's result, where it is one that the runner can use."""
    if name.endswith((".prepare_inputs", ".prepare_attn")) and not isinstance(result, dict):
        raise TypeError(f"{type(result).__name__} returned, not a dict")
    return result


def _fallback(name: str, arguments: tuple[Any, ...]) -> Any:
    """What stands for a method's result in a step that has failed and goes on; see ``stages``."""
    if name.endswith(".prepare_inputs"):
        return {}
    if not name.endswith(".__call__"):
        return None
    from vllm.v1.worker.gpu.sample.output import SamplerOutput

    logits, batch = arguments[1:3]
    ids = torch.zeros(batch.num_reqs, 1, dtype=torch.int64, device=logits.device)
    none = torch.zeros(batch.num_reqs, dtype=torch.int32, device=logits.device)
    return SamplerOutput(ids, None, None, num_sampled=none, num_rejected=none)


class GuardedState:
    """Mixin of a plug-in's ``ModelState``: guards its sampler too, and the runner's own state.

    What raises while requests are added would leave the runner with half of a step's.
    """

    loop_name: str
    _late: GenerationLoopError | None = None

    def add_request(self, *args: Any, **kwargs: Any) -> None:
        """See upstream's ``ModelState.add_request``; what it raises fails the step, all being added."""
        try:
            super().add_request(*args, **kwargs)  # type: ignore[misc]
        except GenerationLoopError as error:
            self._late = error

    def preprocess_state(self, *args: Any, **kwargs: Any) -> None:
        """See upstream's ``ModelState.preprocess_state``."""
        self._raise_late()
        super().preprocess_state(*args, **kwargs)  # type: ignore[misc]

    def prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """See upstream's ``ModelState.prepare_inputs``."""
        self._raise_late()
        return super().prepare_inputs(*args, **kwargs)  # type: ignore[misc]

    def _raise_late(self) -> None:
        late, self._late = self._late, None
        if late is not None:
            raise late

    def custom_sampler(self, sampler: Any) -> Any:
        """See upstream's ``ModelState.custom_sampler``."""
        result = super().custom_sampler(sampler)  # type: ignore[misc]
        ours = result[0] if isinstance(result, tuple) else result
        if ours is not None and is_plug_in(type(ours)):
            ours.__class__ = guarded(type(ours), self.loop_name, GuardedSampler)
        return result


class GuardedSampler:
    """Mixin of a plug-in's sampler: a request that it cannot take fails the step, all being added."""

    _late: GenerationLoopError | None = None

    def add_request(self, *args: Any, **kwargs: Any) -> None:
        """See upstream's ``Sampler.add_request``."""
        try:
            super().add_request(*args, **kwargs)  # type: ignore[misc]
        except GenerationLoopError as error:
            self._late = error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See upstream's ``Sampler``."""
        late, self._late = self._late, None
        if late is not None:
            raise late
        return super().__call__(*args, **kwargs)  # type: ignore[misc]


class GuardedScheduler:
    """Mixin of a plug-in's scheduler: a request that it cannot take fails alone."""

    refused: list[tuple[Request, str]]

    def __init__(self, **kwargs: Any) -> None:
        self.refused = []
        super().__init__(**kwargs)

    def add_request(self, request: Request) -> None:
        """See upstream's ``SchedulerInterface.add_request``."""
        try:
            super().add_request(request)  # type: ignore[misc]
        except GenerationLoopError as error:
            # No one expects an answer here: the next step gives it.
            ended: Any = super()
            ended.finish_requests(request.request_id, RequestStatus.FINISHED_ERROR)
            self.refused.append((request, error.message))

    def has_finished_requests(self) -> bool:
        """Whether the workers or the clients have yet to receive a request's end."""
        return bool(self.refused) or super().has_finished_requests()  # type: ignore[misc]
