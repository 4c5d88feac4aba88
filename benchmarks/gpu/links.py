# SPDX-License-Identifier: Apache-2.0
"""What NCCL takes to sum and to gather over the GPUs of a host; needs torch alone.

    python -m benchmarks.gpu.links --ranks 2 4

Rows are of 4096 numbers in bfloat16, as those of an 8B model. A sum is what a layer makes twice. A gather
is of 151936 logits per row, of which every rank has its share.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import time

import torch
import torch.distributed as dist

HIDDEN, VOCABULARY = 4096, 151936
ROWS = (1, 32, 64, 2048, 8192)
CALLS = 20


def _microseconds(call: object) -> float:
    assert callable(call)
    for _ in range(5):
        call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(CALLS):
        call()
    torch.cuda.synchronize()
    return 1e6 * (time.perf_counter() - begin) / CALLS


def _rank(rank: int, ranks: int, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", rank=rank, world_size=ranks)
    for rows in ROWS:
        hidden = torch.ones(rows, HIDDEN, dtype=torch.bfloat16, device="cuda")
        share = torch.ones(rows, VOCABULARY // ranks, dtype=torch.bfloat16, device="cuda")
        whole = share.new_empty(ranks * rows, share.shape[1])
        line = {
            "links": ranks,
            "rows": rows,
            "sum_us": round(_microseconds(lambda hidden=hidden: dist.all_reduce(hidden)), 1),
            "gather_us": round(
                _microseconds(lambda whole=whole, share=share: dist.all_gather_into_tensor(whole, share)), 1
            ),
        }
        if rank == 0:
            print(json.dumps(line), flush=True)
    dist.destroy_process_group()


def main() -> None:
    """Prints a line per number of ranks and of rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    for ranks in parser.parse_args().ranks:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context = torch.multiprocessing.get_context("spawn")
        processes = [context.Process(target=_rank, args=(rank, ranks, port)) for rank in range(ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()


if __name__ == "__main__":
    main()
