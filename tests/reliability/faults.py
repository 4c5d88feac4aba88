# SPDX-License-Identifier: Apache-2.0
"""Faults of processes, files and disks.

Plug-ins that fail in every phase are in ``tests/generation_loop/test_errors.py``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
from safetensors.torch import load_file, save_file

from build_support import paths
from tests.reliability.fuzz import COMPLETIONS
from tests.reliability.world import assert_empty, mixed, post_plain, world


def killed_core(folder: Path) -> dict[str, Any]:
    """SIGKILL to the engine core under load: every client gets an end."""
    return _killed(folder, "EngineCore")


def killed_worker(folder: Path) -> dict[str, Any]:
    """SIGKILL to one of two tensor-parallel workers under load: every client gets an end."""
    before = os.environ.get("VLLM_CPU_OMP_THREADS_BIND")
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "0|1"  # One core for each worker.
    try:
        return _killed(folder, "Worker_TP1", "--tensor-parallel-size", "2")
    finally:
        os.environ.pop("VLLM_CPU_OMP_THREADS_BIND")
        if before is not None:
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = before


def _killed(folder: Path, name: str, *options: str) -> dict[str, Any]:
    """Kills the process of that name while eight clients read streams; what becomes of them."""
    ended: list[float] = []
    processes: list[psutil.Process] = []
    cut = 0
    with world(folder / "log", *options) as server:

        async def one(client: httpx.AsyncClient) -> None:
            nonlocal cut
            body = {**mixed(1), "n": 16, "ignore_eos": True, "max_tokens": 200, "stream": True}
            failed = False
            try:
                async with client.stream("POST", COMPLETIONS, json=body) as response:
                    async for line in response.aiter_lines():
                        failed |= line.startswith('data: {"error"')
            except httpx.HTTPError:
                failed = True
            cut += failed
            ended.append(time.monotonic())

        async def run() -> float:
            async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
                streams = [asyncio.create_task(one(client)) for _ in range(8)]
                await asyncio.sleep(1.0)
                assert not ended, "the streams ended before their time"
                processes.extend(psutil.Process(server.process.pid).children(recursive=True))
                found = [p for p in processes if name in p.name() or name in " ".join(p.cmdline())]
                assert found, [" ".join(p.cmdline()) or p.name() for p in processes]
                for process in found:
                    process.send_signal(signal.SIGKILL)
                begun = time.monotonic()
                await asyncio.gather(*streams)
            return begun

        begun = asyncio.run(run())
        gone = server.process.wait(60)
        left = processes
        while left and time.monotonic() < begun + 120:
            time.sleep(0.2)
            left = [process for process in left if _lives(process)]
        empty = time.monotonic()
    return {
        "clients": len(ended),
        "streams_cut": cut,
        "seconds": round(max(ended) - begun, 2),
        "exit": gone,
        "processes_left": len(left),
        "processes_gone_seconds": round(empty - begun, 2),
        "failed": len(ended) != 8 or not cut or bool(left),
    }


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def weights_of_nan(folder: Path) -> dict[str, Any]:
    """A checkpoint with NaN in its head: requests end, those with a grammar inside of it."""
    from vllm.v1.diffusion import bundled_path

    model = folder / "nan"
    shutil.copytree(bundled_path(), model)
    tensors = load_file(model / "model.safetensors")
    name = next(n for n in sorted(tensors, reverse=True) if tensors[n].dim() == 1)
    tensors[name] = torch.full_like(tensors[name], float("nan"))
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with world(folder / "log", model=model) as server:
        statuses = [post_plain(server, mixed(n))[0] for n in range(8)]
        assert_empty(server)
    return {"nan_in": name, "statuses": statuses, "failed": any(s not in (200, 400) for s in statuses)}


def truncated_weights(folder: Path) -> dict[str, Any]:
    """Half of a checkpoint: the start ends with a sentence."""
    from vllm.v1.diffusion import bundled_path

    model = folder / "truncated"
    shutil.copytree(bundled_path(), model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    code = "import sys; from vllm import LLM; LLM(sys.argv[1], enforce_eager=True)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(model)], capture_output=True, text=True, timeout=600
    )
    named = "safetensors" in (done.stdout + done.stderr).lower()
    return {"exit": done.returncode, "names_the_file": named, "failed": done.returncode == 0 or not named}


def full_disk(folder: Path) -> dict[str, Any]:
    """A build that cannot write its files: it fails, and leaves no extension behind."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))

    command = [sys.executable, "-m", "build_support.kernels", "--device", "cpu"]
    command += ["--build", str(folder / "build"), "--out", str(folder / "out")]
    environment = {**os.environ, "MAX_JOBS": "2"}
    done = subprocess.run(
        command, cwd=paths.ROOT, capture_output=True, text=True, preexec_fn=limited, env=environment
    )
    left = list((folder / "out").rglob("*.so"))
    sentence = next((line for line in done.stderr.splitlines() if line.startswith("error:")), None)
    return {
        "exit": done.returncode,
        "says": sentence,
        "left": len(left),
        "failed": not done.returncode or bool(left),
    }


FAULTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "killed_core": killed_core,
    "killed_worker": killed_worker,
    "weights_of_nan": weights_of_nan,
    "truncated_weights": truncated_weights,
    "full_disk": full_disk,
}


def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All faults, one after the other; ``--only`` names one."""
    made: dict[str, Any] = {}
    for name, fault in FAULTS.items():
        if args.only not in (None, name):
            continue
        (own := folder / name).mkdir()
        made[name] = fault(own)
        print(name, made[name], file=sys.stderr, flush=True)
    return {"faults": made, "failed": not made or any(one["failed"] for one in made.values())}
