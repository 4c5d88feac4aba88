"""What each field of upstream's requests does with a diffusion model: ``docs/compatibility.md``.

A field's verdict is found by trying: its example goes through the checks that a request goes
through. ``compatibility_fields.py`` says what holds for what is accepted, and a field that it does
not know is an error, so that none which a new release brings goes unnoticed.
"""

from __future__ import annotations

import importlib
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from tools.compatibility_fields import KINDS, LATER, MESSAGES, PYTHON_ONLY, SAMPLING, Entry


@dataclass(frozen=True)
class Row:
    """A field and its verdict: a refusal's message, or none."""

    field: str
    entry: Entry
    message: str | None


@cache
def _config() -> Any:
    """The configuration that serves the bundled model."""
    from vllm.v1.diffusion.bundled import bundled_path

    arguments = importlib.import_module("vllm.engine.arg_utils").EngineArgs(model=bundled_path())
    return arguments.create_engine_config()


def _refusal(attempt: Callable[[], None]) -> str | None:
    """The message with which a request is refused, or None."""
    client_error = importlib.import_module("vllm.exceptions").VLLMClientError
    try:
        attempt()
    except (ValueError, client_error) as error:
        details = getattr(error, "errors", None)
        message = str(details()[0]["msg"]) if callable(details) else str(error)
        return shown(message)
    return None


def shown(message: str) -> str:
    """A refusal as the page shows it: without an object's members and the server's addition."""
    message = message.removeprefix("Value error, ").split(" (parameter=")[0]
    return re.sub(r"=(\w+Params)\([^)]*\)", r"=\1(...)", message)


def sampling_refusal(example: dict[str, Any]) -> str | None:
    """How ``SamplingParams(**example)`` are refused, or None."""
    from vllm.v1.generation_loop import get_generation_loop

    module = importlib.import_module("vllm.sampling_params")
    values = dict(example)
    for name, cls in (
        ("structured_outputs", "StructuredOutputsParams"),
        ("repetition_detection", "RepetitionDetectionParams"),
    ):
        if name in values:
            values[name] = getattr(module, cls)(**values[name])
    if "logit_bias" in values:
        values["logit_bias"] = {int(key): value for key, value in values["logit_bias"].items()}
    config = _config()
    return _refusal(
        lambda: get_generation_loop(config).validate_params(module.SamplingParams(**values), config)
    )


def request_refusal(kind: str, example: dict[str, Any]) -> str | None:
    """How a request of an endpoint is refused by the checks of its own fields, or None."""
    from vllm.v1.generation_loop import get_generation_loop

    module, name, body, _ = KINDS[kind]
    cls = getattr(importlib.import_module(module), name)
    config = _config()
    loop = get_generation_loop(config)

    def attempt() -> None:
        request = cls.model_validate({**body, **example})
        loop.validate_request(request, config)
        loop.validate_params(request.to_sampling_params(16, {}), config)

    return _refusal(attempt)


def _rows(
    fields: list[str], entries: dict[str, Entry], try_it: Callable[[dict[str, Any]], str | None]
) -> Iterator[Row]:
    unknown = sorted(set(fields) - set(entries))
    gone = sorted(set(entries) - set(fields) - LATER)
    if unknown or gone:
        raise LookupError(f"tools/compatibility_fields.py has no verdict on {unknown}, and one on {gone}.")
    for name in sorted(fields):
        entry = entries[name]
        message = None
        if entry.example is not None:
            message = entry.message or try_it(entry.example)
        yield Row(name, entry, message)


def sampling_rows() -> list[Row]:
    """Every public field of ``SamplingParams``.

    Raises:
        LookupError: A field has no entry, or an entry no field.
    """
    cls = importlib.import_module("vllm.sampling_params").SamplingParams
    fields = [name for name in cls.__struct_fields__ if not name.startswith("_")]
    return list(_rows(fields, {**SAMPLING, **PYTHON_ONLY}, sampling_refusal))


def request_rows(kind: str) -> list[Row]:
    """Every field of an endpoint's request.

    Raises:
        LookupError: A field has no entry, or an entry no field.
    """
    module, name, _, entries = KINDS[kind]
    cls = getattr(importlib.import_module(module), name)
    fields = list(cls.model_fields)
    return list(_rows(fields, entries, lambda example: request_refusal(kind, example)))


def messages_rows() -> list[Row]:
    """Every field of Anthropic's messages, but those of the render endpoints and of key-value transfer.

    Raises:
        LookupError: A field has no entry, or an entry no field.
    """
    module = importlib.import_module("vllm.entrypoints.anthropic.protocol")
    elsewhere = {"mm_payload", "return_mm_kwargs", "kv_transfer_params", "ec_transfer_params", "watermarking"}
    fields = [name for name in module.AnthropicMessagesRequest.model_fields if name not in elsewhere]
    return list(_rows(fields, MESSAGES, lambda example: None))


def _table(rows: list[Row]) -> str:
    lines = ["| field | | |", "| --- | --- | --- |"]
    for row in rows:
        # The list of known members is parameters.md; a message ends where it begins.
        message = re.sub(r" Known: .*", "", row.message or "")
        verdict, says = "supported", row.entry.note
        code = f"`` {message} ``" if "`" in message else f"`{message}`"
        if message and not row.entry.partly:
            verdict, says = "refused", code
        elif message:
            says = f"{says}; else refused: {code}"
        lines.append(f"| `{row.field}` | {verdict} | {says} |".replace("||", "| |"))
    return "\n".join(lines)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 115, break_long_words=False, break_on_hyphens=False)


def page() -> str:
    """docs/compatibility.md, without its first lines.

    Raises:
        LookupError: A field has no entry, or an entry no field.
    """
    from vllm.v1.diffusion.frontend.http_fields import ASKS_NOTHING, LABELS

    labels = ", ".join(f"`{name}`" for name in LABELS)
    values = ", ".join(
        f"`{name}={value!r}`" for name, allowed in sorted(ASKS_NOTHING.items()) for value in allowed
    )
    parts = [
        _wrapped(
            "What each field of a request does with a masked diffusion model: it has its effect, or the "
            "request is refused with the message given, as `ValueError` in Python and with status 400 by "
            "the server. None is ignored. A value that asks for nothing, such as `min_p=0` or "
            "`logit_bias={}`, is accepted everywhere."
        ),
        "## SamplingParams",
        _table(sampling_rows()),
    ]
    for kind in KINDS:
        parts += [f"## OpenAI {kind}", _table(request_rows(kind))]
    parts += [
        "## Anthropic messages",
        _wrapped(
            "Upstream rewrites the body of `/v1/messages` as a chat, so its fields mean what they mean "
            "there. It drops an unknown field before a loop sees the request, and its response has no member "
            "for `diffusion_stats`, `diffusion_trace`, `diffusion_trace_top_k` and `diffusion_stream`."
        ),
        _table(messages_rows()),
        "## Other fields",
        _wrapped(
            f"OpenAI's fields that vLLM lacks: {labels} say who asks or what OpenAI keeps, and change "
            f"nothing of the answer; these values ask for what happens anyway: {values}. Any other unknown "
            "field is refused: `NAME is no field that this server knows.`"
        ),
    ]
    return "\n\n".join(parts)
