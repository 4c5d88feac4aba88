# SPDX-License-Identifier: Apache-2.0
"""Requests whose answers are known."""

from __future__ import annotations

from typing import Any

import openai

from tests.server.conftest import MODEL

# 27 tokens: 5 of the answer belong to the prompt's last block of 16, 15 to the next one.
SUDOKU = "sudoku 1003/0300/3210/4132="
SOLVED = "1423/2341/3214/4132"
FIRST_BLOCK = "1423/"


def complete(client: openai.OpenAI, prompt: str | list[str] | list[int] = SUDOKU, **parameters: Any) -> Any:
    """``/v1/completions``; what the client does not know goes into the body as it is."""
    known = {"max_tokens", "temperature", "seed", "stop", "n", "stream", "stream_options", "top_p", "echo"}
    extra = {k: v for k, v in parameters.items() if k not in known}
    given = {"max_tokens": 32, **{k: v for k, v in parameters.items() if k in known}}
    return client.completions.create(model=MODEL, prompt=prompt, extra_body=extra, **given)


def chat(client: openai.OpenAI, content: str = SUDOKU, **parameters: Any) -> Any:
    """``/v1/chat/completions``."""
    parameters = {"max_tokens": 32, **parameters}
    return client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": content}], **parameters
    )
