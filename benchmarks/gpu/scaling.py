# SPDX-License-Identifier: Apache-2.0
"""Every figure of one host's GPUs: ranks, parallel experts, replicas behind a server, golden ids.

    python -m benchmarks.gpu.scaling --gpus 4 --minutes 9 --state /tmp/scaling --out figures

Each figure is a job: another command of this folder, or a test, with GPUs of its own. Jobs that need fewer
GPUs than there are run side by side. A job begins only if it can be expected to end in time. Whatever a job
prints is in ``figures/results.jsonl`` a second later. The next call with the same ``--state`` goes on where
this one ended. ``--plan`` prints the jobs and an expected schedule instead, ``--table results.jsonl`` what
was found.

NVLink multicast is off for all of them: on a shared host, a program that uses it can put others' GPUs out of
service.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BATCHES = (1, 64, 256)
PROFILED = (1, 64)
BLOCK, STEPS = 32, 8
GRAPHS = [32, 64, 128, 160, 192, 256, 512, 1024, 2048, 2560, 3072, 4096, 5120, 6144, 8192]
"""Rows of steps: 1 request and its commit, a prompt with blocks (160), 64 and 256 requests with commits."""
AUTOREGRESSIVE_GRAPHS = [1, 64, 256]
COMMON: dict[str, Any] = {
    "max_model_len": 512,
    "max_num_seqs": 256,
    "max_num_batched_tokens": 16384,
    "kv_cache_memory_bytes": 16 << 30,
}
HALF = 16
"""Layers of LLaDA2.0-flash that fit into one GPU of 141 GB: 103 of the 206 GB that all 32 have."""
ENVIRONMENT = {
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "NVSHMEM_DISABLE_NVLS": "1",
    "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
}
FREE_MIB = 2000
"""Memory that a GPU may have in use before the next job gets it."""


@dataclass(frozen=True)
class Job:
    """Commands that run at once on the same GPUs.

    Attributes:
        name: Short name, in file names too.
        gpus: How many GPUs it needs.
        commands: Arguments of Python.
        expected: Seconds that it should take. With more than twice as many it is ended, and not tried again.
    """

    name: str
    gpus: int
    commands: tuple[tuple[str, ...], ...]
    expected: int = 100

    @property
    def limit(self) -> int:
        """Seconds after which it hangs."""
        return 2 * self.expected + 60


def blocks(name: str, shape: str, ranks: int, expected: int = 100, **settings: Any) -> Job:
    """A shape as tensor-parallel ranks in one engine, with a profile."""
    layers = settings.pop("layers", None)
    steps = settings.pop("steps", STEPS)
    graphs = GRAPHS if steps else AUTOREGRESSIVE_GRAPHS
    settings = COMMON | {"tensor_parallel_size": ranks} | settings
    settings["compilation_config"] = {"cudagraph_capture_sizes": graphs}
    command = ["-m", "benchmarks.gpu.blocks", "--shape", shape, "--block", str(BLOCK), "--steps", str(steps)]
    command += ["--batch", *map(str, BATCHES), "--settings", json.dumps(settings)]
    if steps:
        command += ["--profile", *map(str, PROFILED)]
    if layers:
        command += ["--config", json.dumps({"num_hidden_layers": layers})]
    return Job(name, ranks, (tuple(command),), expected)


def served(replicas: int, batches: tuple[int, ...]) -> Job:
    """SDAR-8B behind one server, a replica per GPU."""
    settings: dict[str, Any] = COMMON | {"compilation_config": {"cudagraph_capture_sizes": GRAPHS}}
    if replicas > 1:
        settings["data_parallel_size"] = replicas
    command = ["-m", "benchmarks.gpu.serving", "--shape", "sdar-8b"]
    command += ["--block", str(BLOCK), "--steps", str(STEPS)]
    command += ["--batch", *map(str, batches), "--settings", json.dumps(settings)]
    return Job(f"served-{replicas}", replicas, (tuple(command),), 130)


def golden(ranks: int) -> Job:
    """The published ids; the tiny engines share the GPUs."""
    tests = ("sdar", "llada", "dream", "llada2", "llada2_with_parallel_experts")
    file = "tests/gpu/test_several_gpus.py"
    commands = tuple(("-m", "pytest", "-q", f"{file}::test_{test}[{ranks}]") for test in tests)
    return Job(f"golden-{ranks}", ranks, commands, 110)


def plan(gpus: int) -> list[Job]:
    """Jobs in the order in which they are wanted; those of few GPUs first, which fill the host."""
    jobs: list[Job] = []
    sizes = [ranks for ranks in (1, 2, 4, 8) if ranks <= gpus]
    for ranks in sizes:
        jobs.append(blocks(f"sdar-tp{ranks}", "sdar-8b", ranks, 120 if ranks < 4 else 90))
        if ranks == gpus > 1:
            jobs.append(golden(ranks))
        jobs.append(blocks(f"qwen3-tp{ranks}", "qwen3-8b", ranks, 130, steps=0))
        if ranks < gpus:
            jobs.append(blocks(f"flash-half-tp{ranks}", "llada2-flash", ranks, 130, layers=HALF))
        if ranks == 1:
            jobs.append(served(1, BATCHES))
        else:
            jobs.append(blocks(f"flash-tp{ranks}", "llada2-flash", ranks, 130))
    if gpus > 1:
        jobs.append(blocks(f"flash-ep{gpus}", "llada2-flash", gpus, 130, enable_expert_parallel=True))
        jobs.append(served(gpus, (*BATCHES, gpus * max(BATCHES))))
        jobs.append(blocks(f"flash-half-tp{gpus}", "llada2-flash", gpus, 130, layers=HALF))
    return jobs


@dataclass
class Running:
    """A job's processes, and what of their output is not copied yet."""

    job: Job
    gpus: list[int]
    began: float
    processes: list[subprocess.Popen[bytes]]
    outputs: list[Path]
    read: list[int] = field(default_factory=list)

    def ended(self) -> bool:
        return all(process.poll() is not None for process in self.processes)

    def end(self) -> None:
        """Ends every process of the job, its workers too."""
        for sent in (signal.SIGTERM, signal.SIGKILL):
            for process in self.processes:
                try:
                    os.killpg(process.pid, sent)
                except ProcessLookupError:
                    continue
            time.sleep(1)
        for process in self.processes:
            process.wait()


class Driver:
    """Runs jobs on a host's GPUs until a deadline."""

    def __init__(self, gpus: int, state: Path, out: Path, deadline: float) -> None:
        self.free = list(range(gpus))
        self.state, self.deadline = state, deadline
        self.results, self.logs = out / "results.jsonl", out / "logs.txt"
        self.running: list[Running] = []
        for folder in (state, out):
            folder.mkdir(parents=True, exist_ok=True)

    def pending(self, jobs: list[Job]) -> list[Job]:
        """Jobs that no call has ended."""
        return [job for job in jobs if not (self.state / f"{job.name}.done").exists()]

    def run(self, jobs: list[Job]) -> list[str]:
        """Runs what there is time for; returns the names of what is left."""
        waiting = self.pending(jobs)
        while waiting or self.running:
            now = time.monotonic()
            for job in list(waiting):
                if job.gpus <= len(self.free) and now + job.expected < self.deadline:
                    waiting.remove(job)
                    self._start(job)
            if not self.running:
                break
            time.sleep(1)
            for one in list(self.running):
                self._copy(one)
                hangs = now > one.began + one.job.limit
                if one.ended() or hangs or now > self.deadline:
                    self._finish(one, cut=not one.ended(), again=not (one.ended() or hangs))
        return [job.name for job in self.pending(jobs)]

    def _start(self, job: Job) -> None:
        gpus, self.free = self.free[: job.gpus], self.free[job.gpus :]
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}
        processes, outputs = [], []
        for number, command in enumerate(job.commands):
            output = self.state / f"{job.name}.{number}.out"
            with output.open("wb") as out, output.with_suffix(".log").open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, *command],
                        stdout=out,
                        stderr=log,
                        env=os.environ | ENVIRONMENT | visible,
                        start_new_session=True,
                    )
                )
            outputs.append(output)
        self.running.append(Running(job, gpus, time.monotonic(), processes, outputs, [0] * len(outputs)))
        self._say({"job": job.name, "began": True, "gpus": gpus})

    def _copy(self, one: Running) -> None:
        """Copies the figures that a job has printed since the last time."""
        for number, output in enumerate(one.outputs):
            content = output.read_bytes()
            whole = content[one.read[number] : content.rfind(b"\n") + 1]
            one.read[number] += len(whole)
            for line in whole.decode(errors="replace").splitlines():
                if line.startswith("{"):
                    self._say({"job": one.job.name, "gpus": one.gpus} | json.loads(line))

    def _finish(self, one: Running, cut: bool, again: bool) -> None:
        codes = [process.poll() for process in one.processes]
        one.end()
        self._copy(one)
        self.running.remove(one)
        seconds = round(time.monotonic() - one.began, 1)
        self._say({"job": one.job.name, "codes": codes, "seconds": seconds, "cut": cut})
        with self.logs.open("a", encoding="utf-8") as file:
            for output in one.outputs:
                for path in (output, output.with_suffix(".log")):
                    kept = path.read_text("utf-8", "replace")[-(1500 if not any(codes) else 12000) :]
                    file.write(f"== {path.name}\n{kept}\n")
        if not again:
            (self.state / f"{one.job.name}.done").touch()
        _wait_for_memory(one.gpus)
        self.free = sorted(self.free + one.gpus)

    def _say(self, line: dict[str, Any]) -> None:
        text = json.dumps(line)
        with self.results.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        print(f"{time.strftime('%H:%M:%S')} {text[:400]}", flush=True)


def _wait_for_memory(gpus: list[int], seconds: int = 20) -> None:
    """Waits until ended processes have given their GPUs' memory back."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    for _ in range(seconds):
        try:
            used = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
        except (OSError, subprocess.CalledProcessError):
            return
        if all(float(used[gpu]) < FREE_MIB for gpu in gpus):
            return
        time.sleep(1)


def expected_schedule(jobs: list[Job], gpus: int) -> list[tuple[int, int, Job]]:
    """Begin and end of every job, in seconds, if each takes as long as expected."""
    waiting, now, free = list(jobs), 0, gpus
    running: list[tuple[int, Job]] = []
    schedule: list[tuple[int, int, Job]] = []
    while waiting or running:
        for job in list(waiting):
            if job.gpus <= free:
                waiting.remove(job)
                free -= job.gpus
                running.append((now + job.expected, job))
                schedule.append((now, now + job.expected, job))
        running.sort(key=lambda one: one[0])
        now, ended = running.pop(0)
        free += ended.gpus
    return schedule


def table(path: Path) -> None:
    """Prints what jobs found, and how it compares with the same on one GPU."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    rates = {(line["job"], line["batch"]): line for line in lines if "tokens_per_second" in line}
    print("| job | batch | tokens per second | step, ms | of one GPU |\n|---|---|---|---|---|")
    for (job, batch), line in sorted(rates.items()):
        one = rates.get((re.sub(r"\d+$", "1", job), batch))
        factor = f"{line['tokens_per_second'] / one['tokens_per_second']:.2f}" if one else ""
        print(f"| {job} | {batch} | {line['tokens_per_second']} | {line.get('step_ms', '')} | {factor} |")
    parts = ("step", "forward", "all_reduce", "lm_head", "gather", "rest_busy", "idle")
    print("\nProfiles, in milliseconds per step\n\n| job | batch | " + " | ".join(parts) + " |")
    print("|---|---|" + "---|" * len(parts))
    for line in lines:
        if line.get("profile"):
            values = (f"{line.get(part, 0) / 1e3:.2f}" for part in parts)
            print(f"| {line['job']} | {line['batch']} | " + " | ".join(values) + " |")
    for line in lines:
        if "codes" in line:
            print(line)


def main() -> None:
    """Runs the plan, or prints it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--state", type=Path, default=Path("/tmp/scaling"))
    parser.add_argument("--out", type=Path, default=Path("figures"))
    parser.add_argument("--only", default="", help="jobs whose names match this expression")
    parser.add_argument("--plan", action="store_true", help="print the jobs and end")
    parser.add_argument("--table", type=Path, help="print the figures of this file and end")
    chosen = parser.parse_args()
    if chosen.table:
        table(chosen.table)
        return
    jobs = [job for job in plan(chosen.gpus) if re.search(chosen.only, job.name)]
    if chosen.plan:
        for begin, end, job in expected_schedule(jobs, chosen.gpus):
            print(f"{begin:5d} {end:5d} s  {job.gpus} GPUs  {job.name}")
            for command in job.commands:
                print("               python", " ".join(command))
        return
    driver = Driver(chosen.gpus, chosen.state, chosen.out, time.monotonic() + 60 * chosen.minutes)
    left = driver.run(jobs)
    print("left:", " ".join(left) or "nothing", flush=True)


if __name__ == "__main__":
    main()
