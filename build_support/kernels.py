"""Compiles ``csrc`` with CMake; ``python -m build_support.kernels`` does that alone."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from build_support import paths
from build_support.device import PIP_ISOLATED, nvcc, resolve_device
from build_support.errors import BuildError
from build_support.progress import say

EXTENSION = "vllm/_diffusion_C.abi3.so"


def require_compiler(device: str) -> None:
    """Check that there are compilers, before anything is downloaded.

    Raises:
        BuildError: there is no C++ compiler, or no nvcc for a CUDA build.
    """
    named = shlex.split(os.environ.get("CXX", ""))
    candidates = named[:1] or ["c++", "g++", "clang++"]
    if not any(shutil.which(candidate) for candidate in candidates):
        raise BuildError(
            f"no C++ compiler was found ({', '.join(candidates)}); install g++ or clang++, or name "
            "one in CXX."
        )
    if device == "cuda" and nvcc() is None:
        raise BuildError(
            "nvcc was not found, which a CUDA build needs; install the CUDA toolkit and set "
            "CUDA_HOME, or set VLLM_TARGET_DEVICE=cpu."
        )


def torch_folder(stable: bool) -> Path:
    """Return the folder of the torch to compile against, without importing it.

    Args:
        stable: prefer the interpreter's own environment, if it has the same release, to an isolated
            build environment, whose place is new each time and would defeat incremental builds.

    Raises:
        BuildError: there is no torch.
    """
    spec = importlib.util.find_spec("torch")
    own = Path(sysconfig.get_path("platlib")) / "torch"
    if spec is None or spec.origin is None:
        raise BuildError(
            "torch is not installed where the build runs; install torch==2.13.0 there, or build "
            "with isolation."
        )
    found = Path(spec.origin).parent
    same = (own / "version.py").is_file() and (
        (own / "version.py").read_bytes() == (found / "version.py").read_bytes()
    )
    return own if stable and same else found


def _tool(name: str) -> str:
    """Return the path of cmake or ninja.

    pip's isolated build environment comes first, then the interpreter's own, then the PATH.
    """
    found = shutil.which(name)
    own = Path(sysconfig.get_path("scripts")) / name
    if own.is_file() and not (found and PIP_ISOLATED in found):
        return str(own)
    if found is None:
        raise BuildError(f"{name} was not found; run pip install {name}, or build with isolation.")
    return found


def _run(command: list[str], torch: Path) -> None:
    """Run a step of the compilation, its output on stderr; Python finds this very torch in it."""
    say("+ " + shlex.join(command))
    search = [str(torch.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, search))}
    done = subprocess.run(command, stdout=sys.stderr, env=environment, check=False)
    if done.returncode:
        raise BuildError(
            f"the kernels did not compile ({Path(command[0]).name} ended with {done.returncode}); "
            "its message stands above."
        )


def build_kernels(root: Path, device: str, build: Path, out: Path, stable: bool = False) -> Path:
    """Configure, compile and install the extension; what is up to date is not compiled again.

    Args:
        root: the repository, whose ``CMakeLists.txt`` is used.
        device: ``cpu`` or ``cuda``.
        build: CMake's build folder, kept between calls for incremental builds.
        out: the prefix under which ``vllm/_diffusion_C.abi3.so`` appears.
        stable: see ``torch_folder``; for a build folder that is kept.

    Returns:
        the extension's path.

    Raises:
        BuildError: a tool is missing or compilation fails.
    """
    require_compiler(device)
    if not (root / "CMakeLists.txt").is_file():
        raise BuildError("CMakeLists.txt is missing; restore it from the repository.")
    torch = torch_folder(stable)
    cmake, ninja = _tool("cmake"), _tool("ninja")
    configure = [
        cmake,
        *("-G", "Ninja"),
        *("-S", str(root), "-B", str(build)),
        f"-DCMAKE_MAKE_PROGRAM={ninja}",
        f"-DVLLM_TARGET_DEVICE={device}",
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DCMAKE_PREFIX_PATH={torch / 'share' / 'cmake'}",
    ]
    compiler = nvcc()
    if device == "cuda" and compiler is not None:
        configure.append(f"-DCMAKE_CUDA_COMPILER={compiler}")
    jobs = os.environ.get("MAX_JOBS")
    _run(configure, torch)
    _run([cmake, "--build", str(build), *(["--parallel", jobs] if jobs else [])], torch)
    _run([cmake, "--install", str(build), "--prefix", str(out)], torch)
    extension = out / EXTENSION
    if not extension.is_file():
        raise BuildError(f"CMake installed no {EXTENSION}; correct the install rule of CMakeLists.txt.")
    return extension


def main() -> int:
    """Compile the kernels alone."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--device", help="cpu, cuda or auto; default: VLLM_TARGET_DEVICE")
    parser.add_argument("--build", type=Path, help="default: build/kernels-DEVICE")
    parser.add_argument("--out", type=Path, help="default: BUILD/out")
    chosen = parser.parse_args()
    try:
        device = resolve_device(chosen.device)
        build = chosen.build or paths.ROOT / "build" / f"kernels-{device}"
        extension = build_kernels(paths.ROOT, device, build, chosen.out or build / "out", True)
    except BuildError as error:
        say(f"error: {error}")
        return 1
    say(f"built {extension}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
