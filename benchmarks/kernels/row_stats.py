# SPDX-License-Identifier: Apache-2.0
"""row_stats against PyTorch's ways to the same numbers, in the same run.

    python benchmarks/kernels/row_stats.py [--device cuda] [--rows 1 32] [--compile]

Logits are normal with standard deviation 3 (as a language model's are, roughly), seeded. `floor` is
the time to read the logits once at the measured copy bandwidth.
"""

import argparse
from collections.abc import Callable

import torch
from harness import copy_bandwidth, machine, measure
from torch import Tensor

from vllm.v1.diffusion.kernels.row_stats import row_stats

VOCAB = 151936
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def softmax_float32_max(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Greedy token and confidence, as a fast PyTorch sampler has them."""
    best = logits.float().softmax(-1).max(-1)
    return best.indices, best.values


def softmax_float64_gather(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Greedy token and confidence, as the families' published samplers have them."""
    token = logits.argmax(-1)
    prob = logits.double().softmax(-1)
    return token, prob.gather(-1, token[:, None])[:, 0]


def all_float32(logits: Tensor) -> tuple[Tensor, ...]:
    """Everything row_stats returns but the draw, in float32."""
    log_prob = logits.float().log_softmax(-1)
    prob = log_prob.exp()
    top = prob.topk(2, dim=-1)
    return top.indices, top.values, -(prob * log_prob).sum(-1), logits.float().logsumexp(-1)


def run(device: str, rows: int, dtype: str, repeat: int, compile_too: bool, bandwidth: float) -> None:
    generator = torch.Generator().manual_seed(rows)
    size = rows * VOCAB * DTYPES[dtype].itemsize
    copies = max(1, min(8, (256 << 20) // size)) if device == "cuda" else 1
    draws = [torch.randn(rows, VOCAB, generator=generator) * 3 for _ in range(copies)]
    inputs = [x.to(DTYPES[dtype]).to(device) for x in draws]
    ones = torch.ones(rows, device=device)
    ids = torch.arange(rows, device=device)

    def kernel(temperature: float) -> list[Callable[[], object]]:
        t = ones * temperature
        return [lambda x=x: row_stats(x, t, ones, ids, ids, None, 0) for x in inputs]  # type: ignore[misc]

    def calls(function: Callable[[Tensor], object]) -> list[Callable[[], object]]:
        return [lambda x=x: function(x) for x in inputs]  # type: ignore[misc]

    floor = size / bandwidth
    greedy = measure(kernel(0.0), device, repeat)
    rivals = {
        "float32 softmax + max": calls(softmax_float32_max),
        "float64 softmax + gather": calls(softmax_float64_gather),
        "float32, all statistics": calls(all_float32),
    }
    if compile_too:
        for function in (softmax_float32_max, all_float32):
            rivals[f"compiled {function.__name__}"] = calls(torch.compile(function))
    print(f"{rows:5} rows x {VOCAB} {dtype}: floor {floor * 1e6:9.1f} us")
    print(f"    row_stats, greedy          {greedy * 1e6:10.1f} us   {greedy / floor:6.2f} x floor")
    drawn = measure(kernel(1.0), device, repeat)
    print(f"    row_stats, with a draw     {drawn * 1e6:10.1f} us   {drawn / floor:6.2f} x floor")
    for name, rival in rivals.items():
        taken = measure(rival, device, max(3, repeat // 4))
        print(f"    {name:26} {taken * 1e6:10.1f} us   {taken / greedy:6.2f} x row_stats greedy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rows", type=int, nargs="+", help="default 1 8 64; cuda 32 256 2048")
    parser.add_argument("--dtype", choices=list(DTYPES), nargs="+", default=["bf16"])
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--compile", action="store_true", help="also torch.compile of the rivals")
    options = parser.parse_args()
    device: str = options.device
    print(machine(device))
    bandwidth = copy_bandwidth(device)
    print(f"copy bandwidth {bandwidth / 1e9:.1f} GB/s")
    for dtype in options.dtype:
        for rows in options.rows or ([32, 256, 2048] if device == "cuda" else [1, 8, 64]):
            run(device, rows, dtype, options.repeat, options.compile, bandwidth)


if __name__ == "__main__":
    main()
