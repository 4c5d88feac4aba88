# SPDX-License-Identifier: Apache-2.0
"""Time per launch of Model Runner V2's kernels on a CPU: C++ operators, numba, NumPy.

A launch is what the runner pays: from tensors, through the dispatcher's override for C++, through
`Tensor.numpy()` for the other two. Medians of rounds, warmed, seeded; the three are first checked to
give the same. `python benchmarks/runner_v2/bench_kernels.py [--json OUT]`, with the fork installed.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contenders import PAIRS

from vllm.triton_utils.dispatcher import KernelOverride
from vllm.v1.worker.cpu import runner_kernels

SLOTS, WIDTH, VOCABULARY, BLOCK = 256, 4096, 32768, 128
GPU = "vllm.v1.worker.gpu."

Arguments = tuple[Any, ...]
Shape = tuple[int, int, bool]
SHAPES: list[Shape] = [(1, 1, False), (8, 4, False), (64, 8, False), (4, 512, True)]
"""Requests, tokens of each, and whether they are a prompt's."""


def int32(values: object) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.int32)


def workload(requests: int, window: int, prefill: bool) -> dict[str, tuple[Arguments, Arguments]]:
    """Kernel -> (arguments of the launch, arguments of the contenders), for one batch.

    Args:
        requests: in the batch.
        window: tokens of each that are computed; those of a decode are logit rows and drafts.
        prefill: whether they are a prompt's.
    """
    rng = torch.Generator().manual_seed(requests * 1000 + window)
    idx = torch.randperm(SLOTS, generator=rng)[:requests]
    start = int32(torch.arange(0, (requests + 1) * window, window))
    tokens = requests * window
    logits = 1 if prefill else window
    computed = torch.randint(0, 2000, (SLOTS,), generator=rng, dtype=torch.int32)
    prefill_len = computed + (window if prefill else 0)
    lens = torch.zeros(SLOTS, dtype=torch.int32)
    lens[:requests] = computed[idx] + window
    pos = torch.zeros(8192, dtype=torch.int64)
    cu = int32(torch.arange(0, (requests + 1) * logits, logits))
    ids = torch.zeros(8192, dtype=torch.int32)
    drafts = torch.randint(0, VOCABULARY, (SLOTS, window), generator=rng)
    last = torch.zeros(SLOTS, 1, dtype=torch.int64)
    bins = torch.zeros(SLOTS, VOCABULARY, dtype=torch.int32)
    sampled = torch.randint(0, VOCABULARY, (requests, logits), generator=rng)
    taken = torch.ones(requests, dtype=torch.int32)
    table = torch.zeros(SLOTS, WIDTH, dtype=torch.int32)
    total = torch.zeros(SLOTS, dtype=torch.int32)
    rows = torch.zeros(requests * logits, dtype=torch.int64)
    source = torch.randint(0, 9999, (SLOTS, WIDTH // BLOCK), generator=rng, dtype=torch.int32)
    target = torch.zeros_like(source)
    blocks = int32((computed + window + BLOCK - 1) // BLOCK)
    slots = torch.zeros(1, 8192, dtype=torch.int64)
    addresses = [torch.tensor([t.data_ptr()], dtype=torch.uint64) for t in (source, target)]
    stride, one = torch.tensor([source.stride(0)]), torch.ones(1, dtype=torch.bool)
    keep = (source, target)  # only their addresses are in the arguments
    made = {
        "input_batch._prepare_pos_seq_lens_kernel": (
            (pos, lens, idx, start, computed, SLOTS, 1024),
            (pos, lens, idx, start, computed, SLOTS),
        ),
        "input_batch._combine_sampled_and_draft_tokens_kernel": (
            (ids, idx, last, start, lens, prefill_len, drafts, window, cu, rows, 16, 0),
            (ids, idx, last, start, lens, prefill_len, drafts, cu, rows, 0),
        ),
        "input_batch._post_update_kernel": (
            (idx, computed, last, bins, VOCABULARY, sampled, logits, taken, taken * window, start,
             table, WIDTH, total),
            (idx, computed, last, bins, sampled, taken, taken * window, start, table, total),
        ),
        "block_table._gather_block_tables_kernel": (
            (idx, *addresses, stride, blocks[None], SLOTS, requests, 1024),
            (idx, *keep, blocks),
        ),
        "block_table._compute_slot_mappings_kernel": (
            (2048, idx, start, pos, addresses[0], stride, int32([BLOCK]), one, one, slots, 8192, 0,
             1, 1, -1, 1024),
            (2048, idx, start, pos, source, BLOCK, slots[0]),
        ),
    }  # fmt: skip
    assert tokens <= 2048
    return made


def seconds(launch: Callable[[], object], rounds: int = 25, each: int = 100) -> float:
    """Median time of a launch."""
    for _ in range(each):
        launch()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(each):
            launch()
        times.append((time.perf_counter() - begin) / each)
    return statistics.median(times)


def tensors(args: Arguments) -> list[torch.Tensor]:
    return [a for a in args if isinstance(a, torch.Tensor)]


def plainly(function: Callable[..., object], args: Arguments) -> Callable[[], object]:
    """A launch of a contender."""
    return lambda: function(*(a.numpy() if isinstance(a, torch.Tensor) else a for a in args))


def through_override(name: str, args: Arguments) -> Callable[[], object]:
    """A launch as upstream's runner writes it."""
    kernel = KernelOverride(lambda: None, runner_kernels.KERNELS[GPU + name])
    return lambda: kernel[(1,)](*args)


def measure(name: str, shape: Shape, compiled: dict[str, Callable[..., object]]) -> dict[str, str | float]:
    """Microseconds a launch, by way of running it."""
    kernel = name.split("._")[1].removesuffix("_kernel")
    times: dict[str, float] = {}
    expected = None
    for way in ("C++", "numba", "NumPy"):
        args, plain = workload(*shape)[name]
        function = compiled[kernel] if way == "numba" else PAIRS[kernel][0]
        launch = through_override(name, args) if way == "C++" else plainly(function, plain)
        begin = time.perf_counter()
        launch()
        first = time.perf_counter() - begin
        if way == "numba" and first > 0.05:
            print(f"numba compiles {kernel}: {first:.2f} s")
        results = [t.clone() for t in tensors(plain)]
        expected = expected or results
        assert all(a.equal(b) for a, b in zip(expected, results, strict=True)), (kernel, way)
        if kernel == "post_update":  # no more tokens, or the rows would run over
            args[7].zero_()
            args[8].zero_()
        times[way] = seconds(launch) * 1e6
    return {"kernel": kernel} | {f"{way} us": round(t, 2) for way, t in times.items()}


def processor() -> str:
    """The processor's name, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    out = parser.parse_args().json
    begin = time.perf_counter()
    import numba

    print(f"import numba: {time.perf_counter() - begin:.2f} s")
    compiled = {name: numba.njit(loops) for name, (_, loops) in PAIRS.items()}
    figures = []
    for shape in SHAPES:
        for name in workload(*shape):
            requests, window, _ = shape
            row = {"requests": requests, "tokens": requests * window}
            figures.append(row | measure(name, shape, compiled))
            print(figures[-1])
    machine = f"{processor()}, {torch.get_num_threads()} threads"
    print(f"{machine}; torch {torch.__version__}, numba {numba.__version__}")
    if out:
        out.write_text(json.dumps({"machine": machine, "figures": figures}, indent=1))


if __name__ == "__main__":
    main()
