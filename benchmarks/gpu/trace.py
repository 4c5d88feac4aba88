# SPDX-License-Identifier: Apache-2.0
"""Where a denoising step's time goes on the device, and whether the host waits inside it.

    python -m benchmarks.gpu.trace --shape sdar-8b --block 32 --steps 8 --batch 1

Runs the engine in this process under ``torch.profiler`` and reads the trace: kernels that a
graph launched are the forward; what is between two graphs is the LM head (its matrix product)
and the rest: sampler, bookkeeping, inputs, and idle time.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # Read by vLLM when it is first imported.

from benchmarks.gpu.engine import Workload, run, start
from benchmarks.gpu.machine import describe

_MATRIX_PRODUCTS = ("gemm", "nvjet", "cutlass", "cublas", "gemv", "splitk", "skinny")
_ALL_REDUCE = ("cross_device_reduce", "allreduce", "all_reduce")
_GATHER = ("allgather", "all_gather", "sendrecv")
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")


def load_trace(path: Path) -> dict[str, Any]:
    """What :func:`read_trace` makes of a file, which may be packed by gzip."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    return read_trace(json.loads(content)["traceEvents"])


def read_trace(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over steps, in microseconds, from a Chrome trace's events.

    Returns:
        ``step``: from one graph's first kernel to the next one's; ``forward``: the graph;
        ``all_reduce``: what of it are sums over ranks, the wait for the slowest rank included;
        ``lm_head``: matrix products between graphs; ``gather``: what ranks send each other there;
        ``rest_busy``: all other device work;
        ``idle``: device time with nothing running, the host's share of a step;
        ``share``: (gather, rest and idle) / step;
        ``kernels``: launches per step outside of graphs; ``waits``: calls of the step's thread that
        wait for the device, by name, a step; ``top``: device time by kernel name, a step.
    """
    launches = {
        e["args"]["correlation"]: e["name"]
        for e in events
        if e.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in e.get("args", {})
    }
    device = [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    graphs: dict[int, list[dict[str, Any]]] = defaultdict(list)
    outside: list[dict[str, Any]] = []
    for event in device:
        correlation = event["args"].get("correlation")
        if "GraphLaunch" in launches.get(correlation, ""):
            graphs[correlation].append(event)
        else:
            outside.append(event)
    spans = sorted(
        (
            min(e["ts"] for e in kernels),
            max(e["ts"] + e["dur"] for e in kernels),
            _time_of(_ALL_REDUCE, kernels),
        )
        for kernels in graphs.values()
    )
    steps = []
    for (begin, end, reduced), (following, *_) in itertools.pairwise(spans):
        if following - begin > 3 * (end - begin):
            continue  # between two batches
        between = [e for e in outside if end <= e["ts"] < following]
        head, gather = _time_of(_MATRIX_PRODUCTS, between), _time_of(_GATHER, between)
        busy = sum(e["dur"] for e in between) - head - gather
        steps.append((following - begin, end - begin, reduced, head, gather, busy, len(between)))
    if not steps:
        return {"steps": 0}
    step, forward, reduced, head, gather, busy, kernels = (
        statistics.median(column) for column in zip(*steps, strict=True)
    )
    names: Counter[str] = Counter()
    for event in device:
        names[event["name"][:90]] += event["dur"]
    waits = Counter(e["name"] for e in events if e.get("cat") == "cuda_runtime" and e["name"] in _WAITS)
    count = len(spans)
    return {
        "steps": len(steps),
        "step": step,
        "forward": forward,
        "all_reduce": reduced,
        "lm_head": head,
        "gather": gather,
        "rest_busy": busy,
        "idle": step - forward - head - gather - busy,
        "share": (step - forward - head) / step,
        "kernels": kernels,
        "waits": {name: round(n / count, 2) for name, n in waits.items()},
        "top": {name: round(time / count, 1) for name, time in names.most_common(25)},
    }


def _time_of(names: tuple[str, ...], kernels: list[dict[str, Any]]) -> float:
    """Microseconds of the kernels whose names hold one of these."""
    return float(sum(e["dur"] for e in kernels if any(n in e["name"].lower() for n in names)))


def watch_host(llm: Any) -> dict[str, list[float]]:
    """Times the host's parts of every step from now on, in milliseconds, by name."""
    core = llm.llm_engine.engine_core.engine_core
    runner = core.model_executor.driver_worker.worker.model_runner
    times: dict[str, list[float]] = {}

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)
        kept = times.setdefault(name, [])

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            result = original(*args, **kwargs)
            kept.append(1e3 * (time.perf_counter() - begin))
            return result

        setattr(owner, name, timed)

    watch(core.scheduler, "schedule")
    watch(core.scheduler, "update_from_output")
    watch(runner, "execute_model")
    watch(runner, "sample_tokens")
    return times


def main() -> None:
    """Profiles one workload."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="sdar-8b")
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="0: autoregressive")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--settings", type=json.loads, default={}, help="engine arguments, JSON")
    parser.add_argument("--keep", type=Path, help="folder for the traces")
    chosen = parser.parse_args()
    settings: dict[str, Any] = {"max_num_seqs": max(chosen.batch)} | chosen.settings
    if chosen.steps and "diffusion_config" not in settings:
        settings["diffusion_config"] = {"block_length": chosen.block}
    llm = start(chosen.shape, **settings)
    print(json.dumps(describe()), flush=True)
    host = watch_host(llm)
    for batch in chosen.batch:
        work = Workload(batch, 128, chosen.tokens, chosen.block, chosen.steps or None)
        run(llm, work, repeats=1)
        for kept in host.values():
            kept.clear()
        timing = run(llm, work, repeats=3, warm=0)
        host_ms = {name: round(statistics.median(kept), 3) for name, kept in host.items()}
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profiler:
            run(llm, work, repeats=1, warm=0)
        folder = chosen.keep or Path(tempfile.mkdtemp())
        path = folder / f"{chosen.shape}-b{chosen.block}-s{chosen.steps}-n{batch}.json"
        profiler.export_chrome_trace(str(path))
        result = load_trace(path)
        print(
            json.dumps(
                {
                    "shape": chosen.shape,
                    "block": chosen.block,
                    "batch": batch,
                    "unprofiled_step_ms": round(timing.step_ms, 3),
                    "host_ms": host_ms,
                    "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
                }
                | result
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
