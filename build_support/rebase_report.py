"""Says what a rebase did to each patch, and what upstream did to the files that the series touches."""

from __future__ import annotations

from pathlib import Path

from build_support import gitrepo, series
from build_support.rebase import OLD_BASE, State


def lines_of(patch: series.Patch) -> list[str]:
    """Return the patch's added and removed lines, in order, without context."""
    body = patch.diff.split("\n")
    return [line for line in body if line[:1] in ("+", "-") and not line.startswith(("+++ ", "--- "))]


def fate(before: series.Patch, after: series.Patch | None, state: State) -> str:
    """Return in words what became of a patch."""
    if after is None:
        return "left out: upstream has it"
    if before.name in state.by_hand:
        return "merged by hand"
    if before.diff == after.diff:
        return "unchanged"
    if [file.path for file in before.files] != [file.path for file in after.files]:
        return "follows code that upstream moved"
    if lines_of(before) == lines_of(after):
        return "moved with its surroundings"
    if set(lines_of(after)) < set(lines_of(before)):
        return "upstream has a part of it"
    return "merged three-way: read it"


def report(before: list[series.Patch], after: list[series.Patch], state: State, churn: dict[str, str]) -> str:
    """Return the report: a line a patch, then a line a file.

    Args:
        before: the pinned series.
        after: the new one.
        state: the finished rebase.
        churn: file -> what upstream did to it.
    """
    kept = {patch.name: patch for patch in after}
    rows = []
    for patch in before:
        new = kept.get(patch.name)
        count = f"{patch.changed_lines} -> {new.changed_lines if new else 0}"
        rows.append((patch.name, count, fate(patch, new, state)))
    width = max((len(row[0]) for row in rows), default=0)
    lines = [f"  {name.ljust(width)}  {count.rjust(9)}  {words}" for name, count, words in rows]
    wide = max((len(name) for name in churn), default=0)
    lines += ["upstream's own changes to the files that the series touches:"]
    lines += [f"  {name.ljust(wide)}  {change}" for name, change in churn.items()]
    return "\n".join(["patch, changed lines before -> after, what became of it:", *lines])


def upstream_churn(folder: Path, patches: list[series.Patch]) -> dict[str, str]:
    """Return file -> what upstream did to it, of the files that the series changes."""
    touched = sorted({file.path for patch in patches for file in patch.files})
    numbers = gitrepo.git(folder, "diff", "--numstat", "--no-renames", OLD_BASE, gitrepo.BASE, "--", *touched)
    stats: dict[str, str] = {}
    for line in numbers.splitlines():
        added, removed, name = line.split("\t", 2)
        stats[name] = f"+{added} -{removed}"
    return {name: stats.get(name, "nothing") for name in touched}
