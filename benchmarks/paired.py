# SPDX-License-Identifier: Apache-2.0
"""Engines of several builds side by side on a CPU, each in a process of its own, and their times.

A script runs itself as such a process. It prints ``{"is": ...}`` once it has started, then a line of that
form for each line that it reads.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_START = '{"is"'


class EngineProcess:
    """A script of a build in a process with one thread.

    Attributes:
        said: What it said when it had started.
    """

    def __init__(self, python: str, script: str, model: str, folder: str, **environment: str) -> None:
        """Starts it.

        Args:
            python: The interpreter of the build.
            script: The script, which runs an engine for ``--engine MODEL``.
            model: The model's folder.
            folder: Where it runs, so that the repository's ``vllm/`` is not in the way.
            **environment: Variables to add.
        """
        one_thread = {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "OMP_NUM_THREADS": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
        }
        self._process = subprocess.Popen(
            [python, str(Path(script).resolve()), "--engine", model],
            env={**os.environ, **one_thread, **environment},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.said = self._read()

    def ask(self, line: str) -> Any:
        """What it answers to a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_START):
                return json.loads(line)["is"]
        raise SystemExit("an engine ended: see its output above")


def median_steps(
    engines: Mapping[str, EngineProcess], rounds: int, steps: Callable[[EngineProcess], list[float]]
) -> dict[str, list[float]]:
    """The median step of each round, by engine; a round goes through the engines in random order."""
    rng = random.Random(0)
    found: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name in rng.sample(list(engines), len(engines)):
            found[name].append(statistics.median(steps(engines[name])))
    return found


def ratio(ones: list[float], bases: list[float]) -> tuple[float, float, float]:
    """The median of the rounds' ratios, and its 95 % interval, by bootstrap."""
    ratios = [one / base for base, one in zip(bases, ones, strict=True)]
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(2000))
    return statistics.median(ratios), medians[50], medians[-51]
