"""The PEP 517 and PEP 660 build backend.

A failure is one plain sentence on stderr and exit status 1; pip shows it without a traceback.
"""

from __future__ import annotations

import sys

_OLDEST, _NEWEST = (3, 11), (3, 13)  # as requires-python in pyproject.toml; a test compares them


def _require_python(version: tuple[int, int]) -> None:
    """Stop on a Python that the wheel does not support, before anything is downloaded."""
    if not _OLDEST <= version <= _NEWEST:
        sys.exit(
            f"error: Python {version[0]}.{version[1]} is not supported; build with Python 3.11, 3.12 or 3.13."
        )


_require_python((sys.version_info[0], sys.version_info[1]))

import functools  # noqa: E402  (what follows needs a supported Python)
import tempfile  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import ParamSpec, TypeVar  # noqa: E402

from build_support import assemble, kernels, metadata, sdist, upstream  # noqa: E402
from build_support.device import resolve_device  # noqa: E402
from build_support.errors import BuildError  # noqa: E402
from build_support.overlay import overlay_files  # noqa: E402
from build_support.paths import ROOT  # noqa: E402
from build_support.pin import Pin, load_pin  # noqa: E402
from build_support.progress import say  # noqa: E402
from build_support.wheel import WheelWriter  # noqa: E402

_Settings = dict[str, object] | None
_P = ParamSpec("_P")
_R = TypeVar("_R")


def _plainly(hook: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turn a BuildError into its sentence and an exit."""

    @functools.wraps(hook)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return hook(*args, **kwargs)
        except BuildError as error:
            sys.exit(f"error: {error}")

    return run


@_plainly
def get_requires_for_build_wheel(config_settings: _Settings = None) -> list[str]:
    """Return what the build environment needs."""
    return list(load_pin(ROOT).build_requirements)


get_requires_for_build_editable = get_requires_for_build_wheel


def get_requires_for_build_sdist(config_settings: _Settings = None) -> list[str]:
    """Return what an sdist needs: nothing."""
    return []


@_plainly
def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: _Settings = None) -> str:
    """Write ``.dist-info``; nothing is downloaded."""
    pin, device = load_pin(ROOT), resolve_device()
    name = metadata.dist_info(pin, device)
    for file, content in metadata.dist_info_files(ROOT, pin, device).items():
        path = Path(metadata_directory) / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return name


prepare_metadata_for_build_editable = prepare_metadata_for_build_wheel


def _add_dist_info(wheel: WheelWriter, pin: Pin, device: str, tree: Path) -> None:
    """Add ``.dist-info`` with every licence."""
    name = metadata.dist_info(pin, device)
    for file, content in metadata.dist_info_files(ROOT, pin, device).items():
        wheel.add_bytes(f"{name}/{file}", content)
    wheel.add_file(f"{name}/licenses/{metadata.UPSTREAM_LICENSE}", tree / upstream.LICENSE)


@_plainly
def build_wheel(
    wheel_directory: str,
    config_settings: _Settings = None,
    metadata_directory: str | None = None,
) -> str:
    """Build the wheel: the patched tree, the overlay and the kernels."""
    pin, device = load_pin(ROOT), resolve_device()
    kernels.require_compiler(device)
    say(f"building {pin.fork_version(device)}")
    path = Path(wheel_directory) / metadata.wheel_name(pin, device)
    home = ROOT / "build"
    home.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="wheel-", dir=home) as scratch:
        tree, out = Path(scratch) / "tree", Path(scratch) / "out"
        assemble.assemble(ROOT, pin, device, tree)
        extension = kernels.build_kernels(ROOT, device, Path(scratch) / "cmake", out)
        say(f"packing {path.name}")
        with WheelWriter(path, metadata.dist_info(pin, device)) as wheel:
            for file in sorted((tree / "vllm").rglob("*")):
                if file.is_file():
                    wheel.add_file(file.relative_to(tree).as_posix(), file)
            for name in overlay_files(ROOT):
                wheel.add_file(name, ROOT / name)
            wheel.add_file(kernels.EXTENSION, extension)
            _add_dist_info(wheel, pin, device, tree)
    return path.name


@_plainly
def build_editable(
    wheel_directory: str,
    config_settings: _Settings = None,
    metadata_directory: str | None = None,
) -> str:
    """Build a wheel that points at a kept tree with the overlay linked into it."""
    pin, device = load_pin(ROOT), resolve_device()
    kernels.require_compiler(device)
    tree = assemble.kept_tree(ROOT, pin, device)
    assemble.link_overlay(ROOT, tree)
    kernels.build_kernels(ROOT, device, ROOT / "build" / f"kernels-{device}", tree, True)
    path = Path(wheel_directory) / metadata.wheel_name(pin, device)
    with WheelWriter(path, metadata.dist_info(pin, device)) as wheel:
        wheel.add_bytes("__editable__.vllm.pth", f"{tree}\n".encode())
        _add_dist_info(wheel, pin, device, tree)
    return path.name


@_plainly
def build_sdist(sdist_directory: str, config_settings: _Settings = None) -> str:
    """Build an sdist: this repository, without upstream."""
    return sdist.write_sdist(ROOT, load_pin(ROOT), Path(sdist_directory))
