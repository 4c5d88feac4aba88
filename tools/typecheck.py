#!/usr/bin/env python3
"""Runs ``mypy --strict`` on the overlay as installed, the examples, the tests, the benchmarks and the models.

In the source folder ``vllm/`` is only the overlay, so mypy would not find what it imports. The modules
are therefore named, and looked up in the environment, from a folder in which there is no ``vllm``; the
tests, benchmarks and models are linked into it, with the source folders that they import.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from build_support import paths
from build_support.overlay import overlay_files

_OPTIONS = ("--strict", "--follow-imports=silent", "--ignore-missing-imports", "--python-version=3.11")
_CHECKED = ("tests", "benchmarks", "models")
_CHECKED_OPTIONS = ("--explicit-package-bases", "--disable-error-code=import-untyped")


def modules() -> list[str]:
    """Return the names of the overlay's modules."""
    files = [Path(name) for name in overlay_files(paths.ROOT) if name.endswith(".py")]
    return [".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files]


def examples() -> list[Path]:
    """Return the files of the example packages."""
    return sorted((paths.ROOT / "examples").glob("*/**/*.py"))


def missing() -> list[str]:
    """Return the overlay's files that the installed tree lacks."""
    spec = importlib.util.find_spec("vllm")
    home = Path(spec.origin).parent.parent if spec and spec.origin else None
    return [name for name in overlay_files(paths.ROOT) if home is None or not (home / name).exists()]


def main() -> int:
    """Run mypy with this interpreter; return its exit status."""
    if lacking := missing():
        print(f"error: {lacking[0]} is not installed; run make develop.", file=sys.stderr)
        return 1
    named = [argument for module in modules() for argument in ("-m", module)]
    cache = paths.ROOT / "build" / "mypy"
    mypy = [sys.executable, "-m", "mypy", *_OPTIONS, f"--cache-dir={cache}"]
    with tempfile.TemporaryDirectory() as folder:
        for name in (*_CHECKED, "build_support", "tools"):
            (Path(folder) / name).symlink_to(paths.ROOT / name)
        checks = (named, [str(path) for path in examples()], [*_CHECKED_OPTIONS, *_CHECKED])
        return max(
            subprocess.run([*mypy, *what], cwd=folder, check=False).returncode for what in checks if what
        )


if __name__ == "__main__":
    sys.exit(main())
