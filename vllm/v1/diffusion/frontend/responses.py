# SPDX-License-Identifier: Apache-2.0
"""What a request of ``/v1/responses`` may ask for: refused where the answer would silently lack it."""

from __future__ import annotations

from typing import Any

from vllm.v1.diffusion.request.fields import ParameterError

_LOGPROBS = "message.output_text.logprobs"
_ITS_DEFAULT = {"background": False, "truncation": "disabled"}
"""Fields in which null stands for the default: upstream accepts it, and refuses its own answer with it."""

_HOSTED = {"web_search_preview": "browser", "code_interpreter": "python", "container": "container"}
"""Types of tools that OpenAI runs, and what a ``--tool-server`` calls them."""


def check_response(request: Any, server: Any) -> None:
    """Refuses tools that would not be called and limits that would not be kept.

    Args:
        request: Upstream's ``ResponsesRequest``; fields that are null are set to their defaults.
        server: Upstream's ``OpenAIServingResponses``; None where the endpoint has no server.

    Raises:
        ParameterError: Names the first such field.
    """
    for name, default in _ITS_DEFAULT.items():
        if getattr(request, name) is None:
            setattr(request, name, default)
    if request.max_tool_calls is not None:
        raise _error("max_tool_calls", request.max_tool_calls, "is not supported: the client makes the calls")
    if request.top_logprobs and _LOGPROBS not in (request.include or ()):
        raise _error("top_logprobs", request.top_logprobs, f"has no effect without include=[{_LOGPROBS!r}]")
    verbosity = request.text.verbosity if request.text is not None else None
    if verbosity not in (None, "medium"):
        raise _error(
            "text.verbosity", verbosity, "is not supported: only 'medium' asks for what happens anyway"
        )
    _check_answers(request.input)
    hosted = getattr(server, "tool_server", None)
    for tool in request.tools:
        if tool.type != "function" and not (hosted and hosted.has_tool(_HOSTED.get(tool.type, ""))):
            raise _error(
                "tools",
                [tool.type],
                "is a tool that OpenAI hosts; this server calls none: use type 'function'",
            )
    renderer = getattr(server, "online_renderer", None)
    if renderer is not None and any(tool.type == "function" for tool in request.tools):
        _check_tool_choice(request, renderer)


def _check_answers(given: Any) -> None:
    """Refuses earlier answers that upstream would not read whole: it takes the text of the first part."""
    if not isinstance(given, list):
        return
    # Every process that admits requests imports this module; a client's types are for this endpoint only.
    from openai.types.responses import ResponseOutputMessage

    for number, item in enumerate(given):
        if isinstance(item, ResponseOutputMessage):
            kinds = [part.type for part in item.content]
            if kinds != ["output_text"]:
                raise _error(
                    f"input[{number}].content", kinds, "must be one part of type 'output_text' in an answer"
                )


def _check_tool_choice(request: Any, renderer: Any) -> None:
    """Refuses what the chat endpoint refuses, in its words."""
    parses = renderer.parser is not None and renderer.parser.tool_parser_cls is not None
    choice = request.tool_choice
    if choice == "none" or (parses and (choice != "auto" or renderer.enable_auto_tools)):
        return
    wanted = "--enable-auto-tool-choice and --tool-call-parser" if choice == "auto" else "--tool-call-parser"
    shown = choice if isinstance(choice, str) else getattr(choice, "name", choice)
    raise _error("tool_choice", shown, f"requires {wanted} to be set when tools are given")


def _error(name: str, value: Any, reason: str) -> ParameterError:
    return ParameterError(f"{name}={value!r} {reason}.", parameter=name, value=value)
