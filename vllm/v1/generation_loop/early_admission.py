# SPDX-License-Identifier: Apache-2.0
"""Admits a request when its stream is made, not when the first item is asked for.

A stream's response begins before its first item is asked for. A request that is refused then ends a
response of status 200; refused when the stream is made, it is answered with status 400. The admitted
request travels with the prompt to where upstream would make it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from vllm.v1.generation_loop.errors import RequestRefusedError
from vllm.v1.generation_loop.interface import GenerationLoop
from vllm.v1.generation_loop.registry import get_generation_loop

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreRequest

_P = ParamSpec("_P")
_T = TypeVar("_T")

_FORWARDED = (
    "lora_request", "tokenization_kwargs", "priority", "data_parallel_rank", "session_id", "kv_hints",
)  # fmt: skip
"""Arguments of a stream that a request is made of, beside prompt, parameters and name."""

_INT64 = range(-(2**63), 2**63)


class AdmittedPrompt(dict[str, Any]):
    """A rendered prompt, with the request that was made of it.

    Attributes:
        request: The request, until it is taken.
    """

    request: EngineCoreRequest | None = None


def admits_at_once(stream: Callable[_P, AsyncGenerator[_T, None]]) -> Callable[_P, AsyncGenerator[_T, None]]:
    """Makes a method that streams a request's outputs refuse the request when it is called.

    The default loop's engines are left as they are, and so are prompts that are not rendered: to
    tokenise them would block the caller.

    Args:
        stream: A method of the engine's client, or of what has one as ``engine_client``.

    Raises:
        VLLMValidationError: From the call; see ``InputProcessor.process_inputs``.
    """
    signature = inspect.signature(stream)

    @functools.wraps(stream)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> AsyncGenerator[_T, None]:
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments
        engine = getattr(args[0], "engine_client", args[0])
        name = "engine_input" if "engine_input" in given else "prompt"
        prompt = given.get(name)
        rendered = isinstance(prompt, dict) and "type" in prompt
        waiting = isinstance(prompt, AdmittedPrompt) and prompt.request is not None
        if rendered and not waiting and _guarded(engine):
            admitted = AdmittedPrompt(prompt or {})
            admitted.request = _admit(engine, prompt, given)
            given[name] = admitted
        return stream(*bound.args, **bound.kwargs)

    return call


def admitted_request(prompt: Any, request_id: str, priority: int) -> EngineCoreRequest | None:
    """Takes the request that was made of a prompt, once; None where it is still to be made.

    Args:
        prompt: What ``InputProcessor.process_inputs`` was given.
        request_id: The request's name.
        priority: Its priority, which crosses to another process in 64 bits.

    Raises:
        RequestRefusedError: The priority does not fit.
    """
    if priority not in _INT64:
        raise RequestRefusedError(
            f"priority={priority} must fit into 64 bits.", parameter="priority", value=priority
        )
    request = getattr(prompt, "request", None) if isinstance(prompt, AdmittedPrompt) else None
    if request is not None:
        prompt.request = None
        request.request_id = request_id
    return request


def reads_one_token(read: Callable[_P, Awaitable[_T]]) -> Callable[_P, Awaitable[_T]]:
    """Makes a function that scores the token behind a prompt ask the engine's loop whether there is one.

    Args:
        read: Takes ``engine_client`` and ``sampling_params``, a list.
    """
    signature = inspect.signature(read)

    @functools.wraps(read)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> Awaitable[_T]:
        given = signature.bind(*args, **kwargs).arguments
        config = getattr(given.get("engine_client"), "vllm_config", None)
        loop = get_generation_loop(config) if config is not None else None
        # Who gives parameters of the loop's own (a canvas) knows what is read.
        plain = not all(getattr(one, "extra_args", None) for one in given.get("sampling_params", (None,)))
        if loop is not None and plain and not getattr(loop, "loop", loop).reads_next_token:
            raise RequestRefusedError(
                "Scoring by the probability of the next token is not supported with diffusion models: the "
                "token behind a prompt is one of a canvas, and its probability depends on what is unmasked "
                "before it. Completions with logprob_token_ids say how a canvas was written."
            )
        return read(*args, **kwargs)

    return call


def _guarded(engine: Any) -> bool:
    """Whether an engine's client makes requests itself, of another loop than upstream's."""
    config = getattr(engine, "vllm_config", None)
    if config is None or getattr(engine, "input_processor", None) is None:
        return False
    return type(get_generation_loop(config)) is not GenerationLoop


def _admit(engine: Any, prompt: Any, given: dict[str, Any]) -> EngineCoreRequest:
    traced = engine.vllm_config.observability_config.otlp_traces_endpoint is not None
    request: EngineCoreRequest = engine.input_processor.process_inputs(
        given["request_id"],
        prompt,
        given["sampling_params"],
        supported_tasks=("generate",),
        trace_headers=given.get("trace_headers") if traced else None,
        **{name: given[name] for name in _FORWARDED if name in given},
    )
    return request
