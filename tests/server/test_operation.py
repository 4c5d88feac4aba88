# SPDX-License-Identifier: Apache-2.0
"""What an operator sees: metrics, clients that go away, a clean end."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.server.known_answers import SOLVED, SUDOKU, complete

LONG = {"ignore_eos": True, "max_tokens": 1900, "temperature": 1.0, "seed": 3}
SLOW = {"vllm_xargs": {"diffusion_algorithm": "low_confidence_static", "diffusion_steps": 16}}


def test_metrics(client: Any, server: Any) -> None:
    before = server.metrics()
    complete(client)
    server.wait_for(lambda m: m["vllm:num_requests_running"] == 0)
    after = server.metrics()
    changes = {name: value - before.get(name, 0) for name, value in after.items()}
    # Both blocks count whole: what is cut behind the end token was committed too.
    assert changes["vllm:diffusion_num_committed_tokens_total"] == 5 + 16
    assert changes["vllm:diffusion_num_denoising_steps_total"] >= 2
    assert changes["vllm:diffusion_num_canvas_positions_total"] == (
        16 * changes["vllm:diffusion_num_denoising_steps_total"]
    )
    steps = changes["vllm:diffusion_num_denoising_steps_total"]
    assert changes["vllm:diffusion_steps_per_block_count"] == 2
    assert changes["vllm:diffusion_steps_per_block_sum"] == steps
    assert changes["vllm:diffusion_tokens_per_forward_count"] == 1
    assert changes["vllm:diffusion_tokens_per_forward_sum"] == pytest.approx((len(SOLVED) + 1) / steps)
    assert changes["vllm:generation_tokens_total"] == len(SOLVED) + 1
    assert changes["vllm:prompt_tokens_total"] == len(SUDOKU)


def test_a_client_that_goes_away_frees_its_place(client: Any, server: Any) -> None:
    stream = complete(client, "x", stream=True, **LONG, **SLOW)
    next(iter(stream))
    running = server.metrics()["vllm:num_requests_running"]
    stream.close()
    assert running == 1
    server.wait_for(lambda m: m["vllm:num_requests_running"] == 0, seconds=10)
    server.wait_for(lambda m: m["vllm:kv_cache_usage_perc"] == 0, seconds=10)
    assert complete(client).choices[0].text == SOLVED


def test_a_prompt_that_is_too_long_harms_nobody(client: Any, server: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="2048"):
        complete(client, "x" * 2049)
    assert complete(client, "x" * 2040, max_tokens=8).usage.completion_tokens <= 8
    assert complete(client).choices[0].text == SOLVED


def test_the_log_holds_no_error(server: Any) -> None:
    log = server.log.read_text()
    assert "Traceback" not in log, log[-4000:]
    assert " ERROR " not in log, log[-4000:]
