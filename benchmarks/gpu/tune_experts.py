# SPDX-License-Identifier: Apache-2.0
"""Finds the fastest tiles of upstream's kernel for a mixture's experts, for each number of rows.

    python -m benchmarks.gpu.tune_experts --experts 256 --width 512 --hidden 2048 --top-k 8 --out FOLDER

Writes the file that upstream looks for on such a GPU (``VLLM_TUNED_CONFIG_FOLDER``, or its own folder of
configurations), and prints each choice beside upstream's default. Tokens go to the experts evenly, as those
of a trained mixture do nearly. Every candidate is compiled first, in as many processes as there are cores;
then one process times them, each in a CUDA graph.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
from pathlib import Path
from typing import Any

Tile = dict[str, int]

ROWS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_SHARED_MEMORY = 227 * 1024
_CALLS = 8
"""Calls in a graph."""
_REPLAYS = 5


def candidates() -> list[Tile]:
    """Tiles that fit into a Hopper multiprocessor."""
    found = []
    for m, n, k, warps, stages in itertools.product(
        (16, 32, 64, 128), (64, 128, 256), (64, 128), (4, 8), (2, 3, 4)
    ):
        if stages * 2 * k * (m + n) > _SHARED_MEMORY or (m * n <= 1024 and warps == 8):
            continue
        found.append(
            {
                "BLOCK_SIZE_M": m,
                "BLOCK_SIZE_N": n,
                "BLOCK_SIZE_K": k,
                "GROUP_SIZE_M": 1,
                "SPLIT_K": 1,
                "num_warps": warps,
                "num_stages": stages,
            }
        )
    return found


def suiting(tiles: list[Tile], rows: int, experts: int, top_k: int) -> list[Tile]:
    """Those whose rows are near those of an expert."""
    each = rows * top_k / experts
    return [tile for tile in tiles if tile["BLOCK_SIZE_M"] <= max(16, 4 * each)]


class Layer:
    """A mixture's experts with random weights."""

    def __init__(self, experts: int, width: int, hidden: int, top_k: int) -> None:
        import torch

        self.experts, self.top_k, self.hidden = experts, top_k, hidden
        generator = torch.Generator("cuda").manual_seed(0)
        how: Any = {"dtype": torch.bfloat16, "device": "cuda", "generator": generator}
        self.first = torch.randn(experts, 2 * width, hidden, **how) / hidden**0.5
        self.second = torch.randn(experts, hidden, width, **how) / width**0.5

    def inputs(self, rows: int) -> tuple[Any, Any, Any]:
        """Rows, their experts' weights, and their experts: each expert as often as any other."""
        import torch

        generator = torch.Generator("cuda").manual_seed(rows)
        turns = -(-rows * self.top_k // self.experts)
        drawn = [
            torch.randperm(self.experts, generator=generator, device="cuda") for _ in range(max(turns, 1))
        ]
        ids = torch.cat(drawn)[: rows * self.top_k].view(rows, self.top_k).int()
        x = torch.randn(rows, self.hidden, dtype=torch.bfloat16, device="cuda", generator=generator)
        return x, torch.full((rows, self.top_k), 1 / self.top_k, device="cuda"), ids

    def run(self, inputs: tuple[Any, Any, Any], tile: Tile | None) -> Any:
        """One call with a tile; None for upstream's choice."""
        from vllm.model_executor.layers.fused_moe import override_config
        from vllm.model_executor.layers.fused_moe.fused_moe import fused_experts

        with override_config(tile):
            return fused_experts(inputs[0], self.first, self.second, inputs[1], inputs[2])

    def time(self, inputs: tuple[Any, Any, Any], tile: Tile | None) -> float:
        """Microseconds of a call."""
        import torch

        self.run(inputs, tile)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(_CALLS):
                self.run(inputs, tile)
        taken: list[float] = []
        for _ in range(_REPLAYS):
            begin: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            taken.append(1e3 * begin.elapsed_time(end) / _CALLS)
        return statistics.median(taken)


def compile_some(shape: tuple[int, int, int, int], tiles: list[Tile]) -> int:
    """Compiles tiles into Triton's cache, in a process of its own; returns how many failed."""
    layer, failed = Layer(*shape), 0
    inputs = layer.inputs(ROWS[1])
    for tile in tiles:
        try:
            layer.run(inputs, tile)
        except Exception as error:  # A tile that does not fit is none of the candidates.
            print(f"left out: {tile}: {error}"[:200], flush=True)
            failed += 1
    return failed


def main() -> None:
    """Tunes one shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=int, required=True)
    parser.add_argument("--width", type=int, required=True, help="of an expert, on one rank")
    parser.add_argument("--hidden", type=int, required=True)
    parser.add_argument("--top-k", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    shape = (chosen.experts, chosen.width, chosen.hidden, chosen.top_k)
    tiles = candidates()
    processes = min(os.cpu_count() or 1, 14)
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.starmap(compile_some, [(shape, tiles[i::processes]) for i in range(processes)])

    import torch

    from vllm.model_executor.layers.fused_moe.fused_moe import get_config_file_name

    layer = Layer(*shape)
    best: dict[str, Tile] = {}
    for rows in ROWS:
        inputs = layer.inputs(rows)
        default = layer.time(inputs, None)
        times: list[tuple[float, int]] = []
        for i, tile in enumerate(suiting(tiles, rows, chosen.experts, chosen.top_k)):
            try:
                times.append((layer.time(inputs, tile), i))
            except Exception:  # Named when it was compiled.
                torch.cuda.synchronize()
        time, which = min(times)
        best[str(rows)] = suiting(tiles, rows, chosen.experts, chosen.top_k)[which]
        line = {
            "rows": rows,
            "default_us": round(default, 1),
            "best_us": round(time, 1),
            "tile": best[str(rows)],
        }
        print(json.dumps(line), flush=True)
    chosen.out.mkdir(parents=True, exist_ok=True)
    name = get_config_file_name(chosen.experts, chosen.width, None)
    (chosen.out / name).write_text(json.dumps(best, indent=4) + "\n", encoding="utf-8")
    print(chosen.out / name)


if __name__ == "__main__":
    main()
