# SPDX-License-Identifier: Apache-2.0
"""Timing and the description of the machine, shared by the kernel benchmarks."""

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

GRAPH_CALLS = 20


def machine(device: str) -> str:
    """One line that says where a figure comes from."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = platform.processor() or platform.machine()
        info = Path("/proc/cpuinfo")
        if info.exists():
            lines = info.read_text().splitlines()
            name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
        name += f", {torch.get_num_threads()} threads"
    return f"{name}; torch {torch.__version__}; Python {platform.python_version()}"


def measure(calls: Sequence[Callable[[], object]], device: str, repeat: int = 20) -> float:
    """Median seconds of a call.

    `calls` do the same on different inputs, taken in turn, so that a small input is not served from
    a cache that the previous call filled. On CUDA, GRAPH_CALLS of them are captured into a graph,
    so that the time is the device's and not the launches'.
    """
    for call in calls:
        call()
    if device != "cuda":
        times = []
        for i in range(repeat):
            start = time.perf_counter()
            calls[i % len(calls)]()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(GRAPH_CALLS):
            calls[i % len(calls)]()
    times = []
    for _ in range(3 + repeat):
        start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start_event.record()
        graph.replay()
        end_event.record()
        end_event.synchronize()
        times.append(start_event.elapsed_time(end_event) / 1e3 / GRAPH_CALLS)
    return statistics.median(times[3:])


def copy_bandwidth(device: str) -> float:
    """Bytes per second of a large copy, read and written bytes counted."""
    size = (1 << 32) if device == "cuda" else (1 << 28)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / measure([lambda: target.copy_(source)], device, repeat=10)
