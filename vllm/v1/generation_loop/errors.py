# SPDX-License-Identifier: Apache-2.0
"""What a plug-in's failure becomes, on its way from a worker to the client.

An error crosses two process boundaries. Between worker and engine core upstream keeps
the text of an exception only, so the text of a :class:`GenerationLoopError` carries a
mark by which it is found again. Between engine core and front end a failed request is
an output whose ``finish_reason`` is ``error`` and whose ``stop_reason`` is the message.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from vllm.exceptions import GracefulHTTPError, VLLMValidationError
from vllm.outputs import RequestOutput

_MARK = "GenerationLoopError:"


class GenerationLoopError(RuntimeError):
    """Code of a plug-in raised, in the engine core or in a worker.

    The requests of the step fail with this message and the engine goes on. Raise it
    from a plug-in's own helpers to choose the message; what else a plug-in raises is
    turned into one.
    """

    def __init__(self, message: str) -> None:
        """Makes the error.

        Args:
            message: Names the plug-in, the method and the cause.
        """
        super().__init__(_MARK + json.dumps(message))
        self.message = message


class RequestRefusedError(VLLMValidationError, ValueError):
    """A loop refused a request at admission: HTTP 400, ``ValueError`` in Python."""


class RequestFailedError(GracefulHTTPError):
    """A request failed in a plug-in: HTTP 500. ``AsyncLLM.generate`` raises it."""


def describe(loop: str, method: str, error: BaseException) -> str:
    """The sentence that names a plug-in, its method and what it raised."""
    return f"generation_loop={loop!r}: {method}() raised {type(error).__name__}: {error}"


def message_of(error: BaseException) -> str | None:
    """The message of the :class:`GenerationLoopError` that an exception is or quotes.

    Args:
        error: Any exception; those of other processes arrive as text inside another.
    """
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen)
        start = text.find(_MARK)
        if start >= 0:
            try:
                message, _ = json.JSONDecoder().raw_decode(text, start + len(_MARK))
            except json.JSONDecodeError:
                message = text[start + len(_MARK) :]
            return str(message)
        seen = seen.__cause__ or seen.__context__
    return None


def error_or(output: Any) -> Any:
    """A stream's next item: the exception that a failed request ends with, or the output.

    Args:
        output: What ``AsyncLLM`` is about to hand to the request's stream.
    """
    for completion in output.outputs if isinstance(output, RequestOutput) else ():
        if completion.finish_reason == "error" and isinstance(completion.stop_reason, str):
            return RequestFailedError(completion.stop_reason, HTTPStatus.INTERNAL_SERVER_ERROR)
    return output
