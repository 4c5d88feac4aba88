# SPDX-License-Identifier: Apache-2.0
"""The CPU operators under AddressSanitizer and UBSan: their tests, and calls from a seed.

``python -m tests.reliability sanitize`` builds ``csrc`` once more, with both sanitizers, and runs this
file with their library loaded first. A finding ends the process, so the command fails.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1 -O1"
SUITES = ("tests/kernels", "tests/runner_v2")
LEFT_OUT = "not engine and not opcheck and not variants and not registration and not layers"


def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Builds, then runs tests and random calls in processes of their own."""
    from build_support import paths
    from build_support.kernels import build_kernels

    os.environ |= {"CXXFLAGS": FLAGS, "LDFLAGS": FLAGS}
    extension = build_kernels(
        paths.ROOT, "cpu", paths.ROOT / "build" / "kernels-sanitized", folder / "out", True
    )
    # The sanitizer finds what throws exceptions only where that is loaded when it starts.
    needed = [_library("libasan.so"), _library("libstdc++.so")]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(needed),
        # CPython and torch keep memory until their end.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:detect_odr_violation=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "SANITIZED_EXTENSION": str(extension),
    }
    for name in ("CXXFLAGS", "LDFLAGS"):
        del environment[name]
    codes = {}
    for what in ("tests", "calls"):
        command = [
            sys.executable,
            "-m",
            "tests.reliability.sanitize",
            what,
            str(args.seed),
            str(args.requests),
        ]
        codes[what] = subprocess.run(command, env=environment, cwd=paths.ROOT).returncode
    return {"random_calls": args.requests, "exit": codes, "failed": any(codes.values())}


def _library(name: str) -> str:
    command = ["c++", f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def use_sanitized() -> None:
    """Puts the sanitized extension in the place of the installed one."""
    module = ModuleType("vllm._diffusion_C")
    module.__spec__ = ModuleSpec("vllm._diffusion_C", None, origin=os.environ["SANITIZED_EXTENSION"])
    sys.modules["vllm._diffusion_C"] = module


def run_tests() -> int:
    """The operators' own tests."""
    import pytest

    return int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-k", LEFT_OUT, *SUITES]))


def random_calls(seed: int, count: int) -> int:
    """Calls operators with tensors of any shape and values; each returns or refuses.

    Returns:
        How many calls an operator took.
    """
    import torch

    from vllm.v1.diffusion.kernels import library  # noqa: F401
    from vllm.v1.worker.cpu import runner_kernels  # noqa: F401

    rng = random.Random(seed)
    torch.manual_seed(seed)
    names = sorted({s.name.partition("::")[2] for s in torch._C._jit_get_all_schemas() if _ours(s.name)})
    taken = 0
    for _ in range(count):
        operator = getattr(torch.ops.vllm_diffusion, rng.choice(names)).default
        arguments = [_value(str(one.type), rng) for one in operator._schema.arguments]
        try:
            operator(*arguments)
            taken += 1
        except (RuntimeError, ValueError, TypeError, NotImplementedError):
            continue
    print(f"{count} calls of {len(names)} operators, {taken} taken", flush=True)
    return taken


def _ours(name: str) -> bool:
    return name.startswith("vllm_diffusion::")


def _value(kind: str, rng: random.Random) -> Any:
    import torch

    if kind.startswith("Optional") and rng.random() < 0.4:
        return None
    if "Tensor" in kind:
        shape = [rng.choice([0, 1, 1, 2, 3, 5, 8, 33]) for _ in range(rng.choice([0, 1, 1, 2, 2, 3, 4]))]
        dtype = rng.choice([
            torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.int64, torch.bool,
            torch.uint8, torch.float64,
        ])  # fmt: skip
        values = torch.randn(shape) * rng.choice([1.0, 100.0])
        if rng.random() < 0.2:
            values = values.masked_fill(values > 0, rng.choice([float("nan"), float("inf"), -float("inf")]))
        made = values.nan_to_num(0, 0, 0).to(dtype) if not dtype.is_floating_point else values.to(dtype)
        return made.t() if made.dim() == 2 and rng.random() < 0.2 else made
    if "bool" in kind:
        return rng.random() < 0.5
    if "float" in kind:
        return rng.choice([0.0, 1.0, -1.0, 1e-30, 1e30, float("nan"), float("inf")])
    if "int" in kind:
        return rng.choice([0, 1, 2, -1, 7, 64, 4096, 2**31, -(2**31), 2**62])
    return "x"


if __name__ == "__main__":
    use_sanitized()
    what, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    sys.exit(run_tests() if what == "tests" else int(random_calls(seed, count) < 0))
