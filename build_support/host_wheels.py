"""Wheels that a host without a network lacks: found from requirements, fetched for its Python."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from email.parser import HeaderParser
from pathlib import Path

from build_support.errors import BuildError
from build_support.progress import say

_GLIBC = (5, 12, 17, 24, 27, 28, 31, 34, 35, 39)  # pip matches manylinux_2_N exactly
_MARKED = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


def canonical(name: str) -> str:
    """Return a project's name as PEP 503 spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def frozen_names(text: str) -> set[str]:
    """Return the projects that ``pip list --format=freeze`` named."""
    return {canonical(match[1]) for line in text.splitlines() if (match := _MARKED.match(line))}


def fetch_missing(
    requirements: Iterable[str], present: set[str], python: str, folder: Path, leave_out: set[str]
) -> list[str]:
    """Download what requirements, and theirs in turn, name beyond what a host has.

    The newest version that fits each requirement is taken; a project that the host has is taken as it is.

    Args:
        requirements: as in ``Requires-Dist``.
        present: canonical names of the host's projects.
        python: the host's Python, as ``3.12``.
        folder: where the wheels go.
        leave_out: canonical names that are not wanted, nor what only they need.

    Returns:
        file names of the wheels.

    Raises:
        BuildError: pip finds no wheel for a requirement.
    """
    done = present | leave_out | {"vllm"}
    wanted = [(requirement, frozenset[str]()) for requirement in requirements]
    fetched: list[str] = []
    while wanted:
        level: dict[str, tuple[str, frozenset[str]]] = {}
        for text, extras in wanted:
            found = _needed(text, extras, python)
            if found is not None and found[0] not in done:
                name, line, asked = found
                line, before = (line, asked) if name not in level else (level[name][0], level[name][1])
                level[name] = (line, before | asked)
        if not level:
            break
        done |= set(level)
        new = _download([line for line, _ in level.values()], python, folder, set(fetched))
        fetched += new
        wanted = []
        for wheel in new:
            name = canonical(wheel.split("-")[0])
            extras = level[name][1] if name in level else frozenset()
            wanted += [(need, extras) for need in _requires(folder / wheel)]
    return sorted(fetched)


def _needed(text: str, extras: frozenset[str], python: str) -> tuple[str, str, frozenset[str]] | None:
    """Return (name, requirement without marker, extras) if the marker holds on the host."""
    from packaging.requirements import Requirement

    requirement = Requirement(text)
    marker = requirement.marker
    environment = {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }
    if marker and not any(marker.evaluate(environment | {"extra": extra}) for extra in extras or ("",)):
        return None
    requirement.marker = None
    return canonical(requirement.name), str(requirement), frozenset(requirement.extras)


def _download(lines: list[str], python: str, folder: Path, before: set[str]) -> list[str]:
    """Run pip once for some requirements; return the wheels that it added."""
    say(f"fetching wheels for Python {python}: {len(lines)} projects")
    tag = "cp" + python.replace(".", "")
    platforms = [f"manylinux_2_{n}_x86_64" for n in _GLIBC] + [
        "manylinux2014_x86_64",
        "manylinux1_x86_64",
        "any",
    ]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--implementation", "cp", "--python-version", python]
    for abi in (tag, "abi3", "none"):
        command += ["--abi", abi]
    for platform in platforms:
        command += ["--platform", platform]
    done = subprocess.run([*command, "-d", str(folder), *lines], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise BuildError("pip found no wheel: " + " ".join(reason or done.stderr.splitlines()[-1:]))
    return sorted({path.name for path in folder.glob("*.whl")} - before)


def _requires(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
        headers = HeaderParser().parsestr(archive.read(name).decode("utf-8"))
    return list(headers.get_all("Requires-Dist") or ())
