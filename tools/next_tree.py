#!/usr/bin/env python3
"""Runs the tests that need no engine on the release after the pin, as ``patches/next/`` patches it.

    tools/next_tree.py [--tree DIR] [PYTEST ARGUMENTS]

The tree is upstream's Python of that release, patched, with the overlay laid on it and the kernels of
the installed fork. That release's own compiled objects are left out: they want a newer torch than the
pin's. What imports without them is tested; no model can run. Use an environment with the fork's
requirements and the test extra, such as ``.venv``.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from build_support import paths, series
from build_support.companion import adapt_overlay
from build_support.errors import BuildError
from build_support.home import following
from build_support.kernels import EXTENSION
from build_support.metadata import version_module
from build_support.overlay import copy_overlay
from build_support.pin import load_pin

ENGINE = (  # start one
    "tests/runner_v2/test_engine.py",
    "tests/generation_loop/test_errors.py",
    "tests/generation_loop/test_server.py",
)
SUITES = ("tests/upstream_contract", "tests/kernels", "tests/runner_v2", "tests/generation_loop")


def assemble(tree: Path) -> str:
    """Make the tree anew; return its version."""
    home = following(paths.ROOT)
    shutil.rmtree(tree, ignore_errors=True)
    home.pristine(tree)
    series.write_files(tree, series.apply_series(home.patches(), series.tree_reader(tree)))
    copy_overlay(paths.ROOT, tree)
    adapt_overlay(home.folder, tree)
    pin = dataclasses.replace(load_pin(paths.ROOT), version=home.version)
    (tree / "vllm" / "_version.py").write_text(version_module(pin, "cpu"), encoding="utf-8")
    version = pin.fork_version("cpu")
    info = tree / f"vllm-{version}.dist-info"
    info.mkdir()
    reported = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
    (info / "METADATA").write_text(reported, encoding="utf-8")
    spec = importlib.util.find_spec("vllm")
    built = Path(spec.origin).parent.parent / EXTENSION if spec and spec.origin else None
    if built is None or not built.is_file():
        raise BuildError(
            "the fork is not installed in this environment, whose kernels are used; run make install, then "
            ".venv/bin/python tools/next_tree.py."
        )
    shutil.copyfile(built, tree / EXTENSION)
    return version


def main() -> int:
    """Assemble the tree and run the suites on it; return pytest's exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tree", type=Path, default=paths.ROOT / "build" / "next-tree")
    chosen, rest = parser.parse_known_args()
    os.chdir(paths.ROOT)
    sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != paths.ROOT]
    try:
        version = assemble(chosen.tree)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{chosen.tree}: vLLM {version}", flush=True)
    suites = [] if any("tests/" in argument for argument in rest) else list(SUITES)
    suites = [suite for suite in suites if (paths.ROOT / suite).is_dir()]
    ignored = [f"--ignore={name}" for name in ENGINE]
    command = [sys.executable, "-m", "pytest", *ignored, *suites, *rest]
    environment = os.environ | {"PYTHONPATH": str(chosen.tree.resolve())}
    return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
