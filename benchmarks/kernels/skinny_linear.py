# SPDX-License-Identifier: Apache-2.0
"""skinny_linear against cuBLAS, in the same run.

    python benchmarks/kernels/skinny_linear.py [--rows 4 32] [--shapes qkv down] [--fp8]

Every call of a graph reads another copy of the weights, so that none is found in the L2 cache; bf16,
random, seeded. `TB/s` counts the weights' bytes. With --fp8 also e4m3, the rows quantised in the same call
by upstream and its product (where upstream is installed), or by ours. The shapes are those of an 8B model
(SDAR), its head, LLaDA's merged projection, and smaller ones.
"""

import argparse
from functools import partial
from typing import Any

import torch
from harness import copy_bandwidth, machine, measure

from vllm.v1.diffusion.kernels.skinny_linear import (
    MAX_ROWS,
    quantize_rows,
    skinny_linear,
    skinny_linear_fp8,
)

SHAPES = {
    "qkv": (6144, 4096),
    "o": (4096, 4096),
    "gate_up": (24576, 4096),
    "down": (4096, 12288),
    "llada_qkv": (12288, 4096),
    "head": (151936, 4096),
    "o_half": (4096, 2048),
    "small": (2048, 2048),
}
COPIES = 20


def eight_bit_sides(name: str, x: torch.Tensor, weights: list[torch.Tensor]) -> dict[str, list[Any]]:
    """Calls of the products of 8 bits, by what computes them."""
    scale = torch.full((), 0.2 / 448, device="cuda")
    eight = [(w / scale).to(torch.float8_e4m3fn) for w in weights]
    arrived = torch.zeros(len(eight[0]) // 64, dtype=torch.int32, device="cuda")

    def ours(weight: torch.Tensor, gated: bool = False) -> torch.Tensor:
        return skinny_linear_fp8(*quantize_rows(x), weight, scale, None, arrived, x.dtype, gated)

    sides = {"fp8": [partial(ours, w) for w in eight]}
    if name == "gate_up":
        sides["fp8 gated"] = [partial(ours, w, True) for w in eight]
    try:
        from vllm import _custom_ops as ops
    except ImportError:
        return sides

    def theirs(weight: torch.Tensor) -> torch.Tensor:
        data, scales = ops.scaled_fp8_quant(x, use_per_token_if_dynamic=True)
        return ops.cutlass_scaled_mm(data, weight.t(), scales, scale, x.dtype)

    return {"fp8 cutlass": [partial(theirs, w) for w in eight]} | sides


def run(name: str, rows: int, repeat: int, fp8: bool) -> None:
    n, k = SHAPES[name]
    copies = min(COPIES, (8 << 30) // (n * k * 2))
    weights = [torch.empty(n, k, dtype=torch.bfloat16, device="cuda").normal_(0, 0.02) for _ in range(copies)]
    x = torch.randn(rows, k, device="cuda").to(torch.bfloat16)
    arrived = torch.zeros(n // 64, dtype=torch.int32, device="cuda")
    sides = {
        "cuBLAS": [partial(torch.nn.functional.linear, x, w) for w in weights],
        "skinny": [partial(skinny_linear, x, w, None, arrived) for w in weights],
    }
    if name == "gate_up":
        sides["gated"] = [partial(skinny_linear, x, w, None, arrived, True) for w in weights]
    if fp8:
        sides |= eight_bit_sides(name, x, weights)
    taken = {side: measure(calls, "cuda", repeat) for side, calls in sides.items()}
    figures = ", ".join(
        f"{side} {seconds * 1e6:6.1f} us {n * k * (1 if 'fp8' in side else 2) / seconds / 1e12:.2f} TB/s"
        for side, seconds in taken.items()
    )
    print(f"{name:10} {rows:3} rows: {figures}; {taken['cuBLAS'] / taken['skinny']:.2f} x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 16, 32, 64])
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--fp8", action="store_true")
    parser.add_argument("--repeat", type=int, default=10)
    options = parser.parse_args()
    if max(options.rows) > MAX_ROWS:
        parser.error(f"--rows: at most {MAX_ROWS}")
    torch.manual_seed(0)
    print(machine("cuda"))
    print(f"copy bandwidth {copy_bandwidth('cuda') / 1e12:.2f} TB/s")
    for name in options.shapes:
        for rows in options.rows:
            run(name, rows, options.repeat, options.fp8)


if __name__ == "__main__":
    main()
