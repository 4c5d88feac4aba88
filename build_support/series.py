"""The patch series: ``patches/series`` and one file a patch, with a header that accounts for it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from build_support import udiff
from build_support.errors import BuildError

BUDGET = 300
REASONS = ("upstreamable", "hook", "divergent")
TRAILERS = ("Reason", "Forwarded", "Remove-When", "Test")
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_TRAILER = re.compile(r"([A-Z][A-Za-z-]*): *(.*)")


@dataclass(frozen=True)
class Patch:
    """One patch file.

    Attributes:
        name: the file's name without ``.patch``; the header's first line starts with it.
        header: what, why an overlay cannot do it, and the trailers.
        diff: from the first ``diff --git`` line on.
    """

    name: str
    header: str
    diff: str

    @property
    def text(self) -> str:
        """The file's content."""
        return f"{self.header.rstrip()}\n\n{self.diff}"

    @cached_property
    def files(self) -> tuple[udiff.FileDiff, ...]:
        """The parsed diff."""
        return udiff.parse(self.name, self.diff)

    @property
    def changed_lines(self) -> int:
        """Number of added plus removed lines."""
        return sum(hunk.changed for file in self.files for hunk in file.hunks)

    @property
    def trailers(self) -> dict[str, str]:
        """The ``Key: value`` lines of the header's last paragraph, continuations joined."""
        found: dict[str, str] = {}
        key = ""
        for line in self.header.rstrip().split("\n\n")[-1].splitlines():
            match = _TRAILER.fullmatch(line)
            if match:
                key = match[1]
                found[key] = match[2].strip()
            elif key and line.startswith(" "):
                found[key] = f"{found[key]} {line.strip()}"
        return found

    def faults(self) -> list[str]:
        """Return what is wrong with the header and the paths, in words."""
        faults: list[str] = []
        paragraphs = [part for part in self.header.strip().split("\n\n") if part.strip()]
        subject = paragraphs[0].splitlines()[0] if paragraphs else ""
        if not NAME.fullmatch(self.name):
            faults.append("the name is not lower-case words joined by hyphens, the first no number")
        if not re.fullmatch(re.escape(self.name) + r": \S.*", subject):
            faults.append(f"the header does not start with '{self.name}: what it does'")
        if len(paragraphs) < 3:
            faults.append("the header lacks a paragraph that says why an overlay cannot do it")
        trailers = self.trailers
        faults += [f"the trailer {key}: is missing" for key in TRAILERS if not trailers.get(key)]
        if trailers.get("Reason", REASONS[0]) not in REASONS:
            faults.append(f"Reason: is {trailers['Reason']!r}, not one of {', '.join(REASONS)}")
        outside = [file.path for file in self.files if not file.path.startswith("vllm/")]
        faults += [f"{path} is not under vllm/" for path in outside]
        return faults


def read_patch(path: Path) -> Patch:
    """Read one patch file.

    Raises:
        BuildError: it has no diff.
    """
    header, mark, diff = path.read_bytes().decode("utf-8").partition("\ndiff --git ")
    if not mark:
        raise BuildError(f"{path.name} holds no diff; regenerate it with tools/patches.py export.")
    return Patch(path.name.removesuffix(".patch"), header.rstrip(), mark[1:] + diff)


def read_series(folder: Path) -> list[Patch]:
    """Read the patches named in ``folder/series``, in order; no file means no patches.

    Raises:
        BuildError: a named patch is missing, or named twice.
    """
    series = folder / "series"
    if not series.is_file():
        return []
    lines = [line.split("#")[0].strip() for line in series.read_text("utf-8").splitlines()]
    names = [line for line in lines if line]
    patches: list[Patch] = []
    for name in names:
        if not (folder / name).is_file() or names.count(name) > 1:
            raise BuildError(
                f"patches/series names {name}, which is missing or named twice; regenerate the "
                "series with tools/patches.py export."
            )
        patches.append(read_patch(folder / name))
    return patches


def apply_series(patches: list[Patch], read: Callable[[str], str | None]) -> dict[str, str]:
    """Apply all patches in order, in memory: all or nothing.

    Args:
        patches: the series.
        read: gives the pinned upstream's text of a path, or None.

    Returns:
        path -> final text of each changed file.

    Raises:
        BuildError: a hunk does not match exactly; nothing was written.
    """
    done: dict[str, str] = {}

    def current(path: str) -> str | None:
        return done[path] if path in done else read(path)

    for patch in patches:
        done.update(udiff.apply(patch.name, patch.files, current))
    return done


def tree_reader(root: Path) -> Callable[[str], str | None]:
    """Return a function that reads files under ``root``, newlines untouched."""

    def read(path: str) -> str | None:
        file = root / path
        return file.read_bytes().decode("utf-8") if file.is_file() else None

    return read


def write_files(root: Path, files: dict[str, str]) -> None:
    """Write changed files back under ``root``."""
    for path, content in files.items():
        (root / path).write_bytes(content.encode("utf-8"))
