# SPDX-License-Identifier: Apache-2.0
"""What a figure was measured on, and the machine's own ceilings."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch


def describe() -> dict[str, str]:
    """GPU, driver and versions."""
    gpu = "none"
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        gpu = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    found = {
        "gpu": gpu,
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
    }
    for package in ("vllm", "torch", "triton", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def median_ms(call: Callable[[], object], repeats: int = 20, warm: int = 5) -> float:
    """Median time of a call on the device, in milliseconds."""
    for _ in range(warm):
        call()
    times: list[float] = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def copy_bandwidth() -> float:
    """Bytes a second, read plus written, of a device-to-device copy of 2 GiB."""
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * source.numel() / (median_ms(lambda: target.copy_(source)) / 1e3)
