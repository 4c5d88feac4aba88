# SPDX-License-Identifier: Apache-2.0
"""Time to the first output of long prompts, beside the autoregressive shape in the same run.

    python -m benchmarks.gpu.prompts --shape sdar-8b --block 4 --steps 4 --prompt 8192 32768 --requests 1 16

The first output is a block, or the first token of the autoregressive shape. All requests arrive at once.
Soonest, median and last are over the requests; each is the median of the repeats. ``--profile`` adds where
the device's time goes for one prompt, in milliseconds by kernel.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import random
import statistics
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.gpu.engine import SEED, Workload, parameters, profiler_settings, start, stop
from benchmarks.gpu.machine import describe

AUTOREGRESSIVE = "qwen3-8b"


def of(requests: int, prompt: int, shape: str, chosen: argparse.Namespace) -> Workload:
    """Requests for one block, or for one token of the autoregressive shape."""
    if shape == AUTOREGRESSIVE:
        return Workload(requests, prompt, 1)
    return Workload(requests, prompt, chosen.block, chosen.block, chosen.steps)


def first_outputs(llm: Any, work: Workload, repeats: int, warm: int = 1) -> dict[str, float]:
    """Seconds from a request's arrival to its first output: soonest, median and last request."""
    rng = random.Random(SEED)
    found: list[tuple[float, float, float]] = []
    for i in range(warm + repeats):
        prompts = [
            {"prompt_token_ids": [rng.randrange(1000, 100_000) for _ in range(work.prompt)]}
            for _ in range(work.batch)
        ]
        outputs = llm.generate(prompts, parameters(work), use_tqdm=False)
        times = [output.metrics.first_token_latency for output in outputs]
        if i >= warm:
            found.append((min(times), statistics.median(times), max(times)))
    middle = (statistics.median(column) for column in zip(*found, strict=True))
    return dict(zip(("soonest", "median", "last"), (round(s, 4) for s in middle), strict=True))


def device_time(path: Path) -> dict[str, Any]:
    """Milliseconds on the device by kernel, the time with anything running, and from first to last."""
    content = path.read_bytes()
    events = json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)["traceEvents"]
    device = [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    names: Counter[str] = Counter()
    for event in device:
        names[event["name"][:80]] += event["dur"]
    first, last = min(e["ts"] for e in device), max(e["ts"] + e["dur"] for e in device)
    return {
        "busy_ms": round(sum(names.values()) / 1e3, 2),
        "from_first_to_last_ms": round((last - first) / 1e3, 2),
        "top_ms": {name: round(time / 1e3, 2) for name, time in names.most_common(20)},
    }


def main() -> None:
    """Runs the diffusion shape, then the autoregressive one, and prints a line a workload."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="sdar-8b")
    parser.add_argument("--block", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--prompt", type=int, nargs="+", default=[8192])
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help="leave the autoregressive shape out")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--settings", type=json.loads, default={}, help="engine arguments, JSON")
    chosen = parser.parse_args()
    print(json.dumps(describe()), flush=True)
    both = [chosen.shape] if chosen.alone else [chosen.shape, AUTOREGRESSIVE]
    for shape in both:
        diffuses = shape != AUTOREGRESSIVE
        settings: dict[str, Any] = {"max_model_len": max(chosen.prompt) + 2 * chosen.block}
        settings |= {"max_num_seqs": max(chosen.requests)}
        if diffuses:
            settings["diffusion_config"] = {"block_length": chosen.block}
        traces = Path(tempfile.mkdtemp(prefix="traces-"))
        if chosen.profile:
            settings |= profiler_settings(traces)
        llm = start(shape, **settings | chosen.settings)
        for prompt, requests in itertools.product(chosen.prompt, chosen.requests):
            work = of(requests, prompt, shape, chosen)
            line = {"shape": shape, "block": work.tokens, "prompt": prompt, "requests": requests}
            print(json.dumps(line | first_outputs(llm, work, chosen.repeats)), flush=True)
        if chosen.profile:
            llm.start_profile("prompt")
            first_outputs(llm, of(1, chosen.prompt[0], shape, chosen), 1, warm=0)
            llm.stop_profile()
            (trace,) = traces.glob("prompt_*rank0.*json*")
            print(json.dumps({"shape": shape, "profile": True} | device_time(trace)), flush=True)
        stop(llm)


if __name__ == "__main__":
    main()
