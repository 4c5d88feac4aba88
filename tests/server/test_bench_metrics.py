# SPDX-License-Identifier: Apache-2.0
"""What ``vllm bench serve`` makes of chunks that bring a block each."""

from __future__ import annotations

import pytest

from vllm.benchmarks.lib.endpoint_request_func import RequestFuncOutput
from vllm.benchmarks.serve import BenchmarkMetrics, calculate_metrics


def _metrics(dur_s: float, *outputs: RequestFuncOutput) -> BenchmarkMetrics:
    return calculate_metrics([], list(outputs), dur_s, None, [99.0], {})[0]


def _output(tokens: int, ttft: float, itl: list[float]) -> RequestFuncOutput:
    latency = ttft + sum(itl)
    return RequestFuncOutput(success=True, latency=latency, output_tokens=tokens, ttft=ttft, itl=itl)


def test_blocks() -> None:
    """4 blocks of 32: the 96 tokens behind the first take 3 seconds; two blocks come in one second."""
    metrics = _metrics(3.5, _output(128, 0.2, [0.4, 1.3, 1.3]))
    assert metrics.mean_tpot_ms == pytest.approx(3.0 / 96 * 1000)
    assert metrics.max_output_tokens_per_s == 64
    assert metrics.output_throughput == pytest.approx(128 / 3.5)


def test_tokens() -> None:
    """A token a chunk gives what it gave."""
    metrics = _metrics(2.5, _output(5, 0.5, [0.5] * 4))
    assert metrics.mean_tpot_ms == pytest.approx(500)
    assert metrics.max_output_tokens_per_s == 2


@pytest.mark.parametrize("seconds", [0.25, 1.2])
def test_the_peak_is_not_below_the_mean(seconds: float) -> None:
    metrics = _metrics(seconds, _output(64, seconds / 2, [seconds / 2]))
    assert metrics.max_output_tokens_per_s >= metrics.output_throughput


def test_one_block_has_no_time_per_token() -> None:
    metrics = _metrics(1.0, _output(32, 1.0, []))
    assert metrics.mean_tpot_ms == 0
    assert metrics.max_output_tokens_per_s == 32
