# SPDX-License-Identifier: Apache-2.0
"""A plug-in's failure in a pipeline: the step goes on to its end, and is failed there.

A stage that raised in the middle would leave others waiting: the next one for hidden states, the
first one for the tokens that the last one samples. So a stage that fails calls the plug-in no
more and passes on zeros, with the message beside them. The last stage samples what comes of
them, sends it as ever, and raises. With one stage nothing waits, and nothing is deferred.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vllm.distributed import parallel_state
from vllm.v1.generation_loop.errors import GenerationLoopError

if TYPE_CHECKING:
    from torch import nn

_MESSAGE = "generation_loop_failure"
"""A name in the tensors between stages: UTF-8, uint8 ``[bytes]``, on the host."""


class _Step:
    """The step in hand, in this process.

    Attributes:
        failure: Why a plug-in failed, here or at an earlier stage.
        running: Whether it is a step at all, and not the engine's start.
    """

    failure: str | None = None
    running = False


_step = _Step()


def begin_step() -> None:
    """A step begins; called by the runner."""
    _step.running = several_stages()
    if is_last_stage():
        # Of a step that the engine core gave up before it was sampled. An earlier stage's, of what
        # came behind its forward, is still to be passed on.
        _step.failure = None


def receive_failure(tensors: Any) -> None:
    """Reads what the stage before this one sent; called by the runner.

    Args:
        tensors: The ``IntermediateTensors``.
    """
    message = tensors.tensors.get(_MESSAGE)
    if message is not None and _step.failure is None:
        _step.failure = bytes(message.tolist()).decode()


def end_step() -> None:
    """The last stage has sent its tokens; called by the runner.

    Raises:
        GenerationLoopError: A plug-in failed in this step.
    """
    _step.running = False
    failure, _step.failure = _step.failure, None
    if failure is not None:
        raise GenerationLoopError(failure)


def failed() -> bool:
    """Whether the step in hand is to be finished without the plug-in."""
    return _step.failure is not None


def defer_failure(failure: str) -> bool:
    """Whether a failure waits for the end of the step, rather than being raised at once."""
    if _step.running:
        _step.failure = _step.failure or failure
    return _step.running


def hidden_fallback(model: nn.Module, positions: torch.Tensor) -> Any:
    """What a stage that failed returns from its forward.

    Args:
        model: The stage's part of the model.
        positions: The step's, ``[..., num_tokens]``.
    """
    from vllm.sequence import IntermediateTensors

    num_tokens, device = positions.shape[-1], positions.device
    if is_last_stage():
        return torch.zeros(num_tokens, 1, device=device)
    make: Any = model.make_empty_intermediate_tensors
    zeros = make(num_tokens, torch.get_default_dtype(), device).tensors
    failure, _step.failure = _step.failure, None
    assert failure is not None
    message = torch.tensor(list(failure.encode()), dtype=torch.uint8)
    return IntermediateTensors({**zeros, _MESSAGE: message})


def is_last_stage() -> bool:
    """Whether this is the last pipeline stage, which has hidden states and logits."""
    return not parallel() or parallel_state.get_pp_group().is_last_rank


def several_stages() -> bool:
    """Whether the model is spread over several pipeline stages."""
    return parallel() and parallel_state.get_pp_group().world_size > 1


def parallel() -> bool:
    """Whether this process has worker groups; a test's may have none."""
    return bool(parallel_state.model_parallel_is_initialized())  # type: ignore[no-untyped-call]
