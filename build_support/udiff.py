"""Unified diffs: parsing, and application at the exact place with no fuzz.

A patch may only change files that exist; new files belong in the overlay.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from build_support.errors import BuildError

_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_NO_NEWLINE = "\\ No newline at end of file"


@dataclass(frozen=True)
class Hunk:
    """One hunk.

    Attributes:
        start: line of the old file, from 0, at which ``old`` must stand.
        old: lines before, each with its newline if it has one.
        new: lines after.
        changed: number of added plus removed lines.
    """

    start: int
    old: tuple[str, ...]
    new: tuple[str, ...]
    changed: int


@dataclass(frozen=True)
class FileDiff:
    """The hunks of one file, in order."""

    path: str
    hunks: tuple[Hunk, ...]


class _Reader:
    """Reads one patch's diff line by line."""

    def __init__(self, patch: str, lines: list[str]) -> None:
        self.patch = patch
        self.lines = lines
        self.at = 0

    def fail(self, why: str) -> BuildError:
        return BuildError(
            f"patch {self.patch} is malformed ({why}, diff line {self.at + 1}); regenerate it with "
            "tools/patches.py export."
        )

    def peek(self) -> str:
        return self.lines[self.at] if self.at < len(self.lines) else ""

    def file(self) -> FileDiff:
        """Read from ``diff --git`` to the end of the file's last hunk."""
        self.at += 1
        while self.at < len(self.lines) and not self.peek().startswith("--- "):
            if not self.peek().startswith("index "):
                raise self.fail(f"{self.peek()!r}: only changes of existing files are allowed")
            self.at += 1
        names = [line[4:].split("\t")[0] for line in self.lines[self.at : self.at + 2]]
        if len(names) < 2 or not (names[0].startswith("a/") and names[1].startswith("b/")):
            raise self.fail("a file is added, removed or unnamed")
        if names[0][2:] != names[1][2:]:
            raise self.fail(f"{names[0][2:]} is renamed")
        self.at += 2
        hunks: list[Hunk] = []
        while self.peek().startswith("@@ "):
            hunks.append(self.hunk())
        if not hunks:
            raise self.fail(f"{names[0][2:]} has no hunk")
        return FileDiff(names[0][2:], tuple(hunks))

    def hunk(self) -> Hunk:
        """Read one hunk and check its counts."""
        match = _HUNK.match(self.peek())
        if match is None:
            raise self.fail("unreadable hunk header")
        counts = [1 if match[group] is None else int(match[group]) for group in (2, 4)]
        sides: tuple[list[str], list[str]] = ([], [])
        changed = 0
        self.at += 1
        last: tuple[int, ...] = ()
        while self.peek() and (self.peek()[0] in " +-" or self.peek() == _NO_NEWLINE):
            line = self.peek()
            if line == _NO_NEWLINE:
                for side in last:
                    sides[side][-1] = sides[side][-1].removesuffix("\n")
            elif (len(sides[0]), len(sides[1])) == (counts[0], counts[1]):
                break
            else:
                last = {" ": (0, 1), "-": (0,), "+": (1,)}[line[0]]
                changed += line[0] != " "
                for side in last:
                    sides[side].append(line[1:] + "\n")
            self.at += 1
        if (len(sides[0]), len(sides[1])) != (counts[0], counts[1]):
            raise self.fail("a hunk's lines do not match its header")
        start = int(match[1]) - (1 if counts[0] else 0)
        return Hunk(start, tuple(sides[0]), tuple(sides[1]), changed)


def parse(patch: str, text: str) -> tuple[FileDiff, ...]:
    """Parse the diff part of a patch (what follows its header).

    Args:
        patch: the patch's name, for messages.
        text: from the first ``diff --git`` line on.

    Raises:
        BuildError: it is malformed, or does more than change existing files.
    """
    reader = _Reader(patch, text.split("\n"))
    files: list[FileDiff] = []
    while reader.at < len(reader.lines):
        if reader.peek().startswith("diff --git "):
            files.append(reader.file())
        elif reader.peek() == "":
            reader.at += 1
        else:
            raise reader.fail(f"unexpected {reader.peek()[:40]!r}")
    return tuple(files)


def _apply_file(patch: str, diff: FileDiff, content: str) -> str:
    lines = _LINE.findall(content)  # splitlines would also split at form feeds and the like
    out: list[str] = []
    at = 0
    for number, hunk in enumerate(diff.hunks, 1):
        end = hunk.start + len(hunk.old)
        if hunk.start < at or tuple(lines[hunk.start : end]) != hunk.old:
            raise BuildError(
                f"patch {patch} does not apply: hunk {number} of {diff.path} (line "
                f"{hunk.start + 1}) does not match the pinned upstream exactly; refresh it with "
                "tools/patches.py checkout and export."
            )
        out += lines[at : hunk.start]
        out += hunk.new
        at = end
    return "".join(out + lines[at:])


def apply(patch: str, files: tuple[FileDiff, ...], read: Callable[[str], str | None]) -> dict[str, str]:
    """Apply one patch.

    Args:
        patch: the patch's name, for messages.
        files: its parsed diff.
        read: gives a file's text, or None where there is no such file.

    Returns:
        path -> new text, for each changed file.

    Raises:
        BuildError: a hunk does not match at its exact line.
    """
    changed: dict[str, str] = {}
    for diff in files:
        content = read(diff.path)
        if content is None:
            raise BuildError(
                f"patch {patch} does not apply: hunk 1 of {diff.path} has no file to apply to, "
                "since the pinned upstream has no such path; refresh it with tools/patches.py."
            )
        changed[diff.path] = _apply_file(patch, diff, content)
    return changed
