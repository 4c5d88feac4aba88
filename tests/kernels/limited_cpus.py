# SPDX-License-Identifier: Apache-2.0
"""What this CPU has, and processes that are limited to less."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith("flags") for flag in line.split()}


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **extra}
