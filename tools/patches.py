#!/usr/bin/env python3
"""The developer's command for the patch series.

    tools/patches.py checkout DIR       the pinned upstream as a git repository, one commit a patch
    tools/patches.py export [DIR]       write patches/ from those commits
    tools/patches.py export --check     fail if the committed series is not what export would write
    tools/patches.py verify             headers, series, exact application, collisions, compilation
    tools/patches.py status             a table of the series; fails over the budget
    tools/patches.py rebase VERSION     carry the series to another release, into patches/next/

The first four take --next, for the series in patches/next/. ``rebase latest`` takes the newest release.
A commit's message is the patch's header; its first line is ``name: what it does``.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import io
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from build_support import gitrepo, paths, rebase, series
from build_support.companion import adapt_overlay
from build_support.errors import BuildError
from build_support.home import Home, following, pinned, render
from build_support.overlay import copy_overlay
from build_support.rebase_report import report, upstream_churn
from build_support.release import find_release

_BUILD = paths.ROOT / "build"
_REBASE = _BUILD / "rebase"


def make_checkout(home: Home, folder: Path) -> int:
    """Make the git repository of a series in ``folder``; return the number of patches."""
    if folder.exists() and any(folder.iterdir()):
        raise BuildError(f"{folder} is not empty; name a new folder.")
    patches = home.patches()
    folder.mkdir(parents=True, exist_ok=True)
    home.pristine(folder)
    gitrepo.start(folder, f"vLLM {home.version}, as released\n")
    rebase.apply_each(folder, patches)
    return len(patches)


def exported(folder: Path) -> list[series.Patch]:
    """Return the series that the commits in ``folder`` make."""
    patches: list[series.Patch] = []
    for commit in gitrepo.commits(folder):
        header = gitrepo.message(folder, commit)
        name = gitrepo.name_of(header)
        if not series.NAME.fullmatch(name):
            raise BuildError(
                f"commit {commit[:10]} starts {header.splitlines()[0]!r}; begin its message with "
                "'name: what it does', the name being lower-case words joined by hyphens."
            )
        if name in (patch.name for patch in patches):
            raise BuildError(f"two commits are named {name}; rename one, or squash them.")
        patch = series.Patch(name, header.rstrip(), gitrepo.diff(folder, commit))
        patch.files  # noqa: B018  (parses: refuses new, removed and renamed files)
        patches.append(patch)
    return patches


def _remembered(home: Home) -> Path:
    """Return the file that says where a series was last checked out."""
    return _BUILD / ("patches-checkout" if home.name == "patches/" else "patches-checkout-next")


def _remember(home: Home, folder: Path) -> None:
    _BUILD.mkdir(exist_ok=True)
    _remembered(home).write_text(str(folder.resolve()), encoding="utf-8")


def cmd_checkout(home: Home, folder: Path) -> None:
    """Make the checkout and remember where it is."""
    count = make_checkout(home, folder)
    _remember(home, folder)
    print(f"{folder}: {count} patches as commits on the tag '{gitrepo.BASE}'")


def cmd_export(home: Home, folder: Path | None, check: bool) -> None:
    """Write a series, or compare it with what would be written."""
    if check:
        with tempfile.TemporaryDirectory() as scratch:
            place = folder or Path(scratch) / "tree"
            if folder is None:
                make_checkout(home, place)
            compare(home, render(exported(place)))
        return
    if folder is None:
        if not _remembered(home).is_file():
            raise BuildError("no checkout is known; run tools/patches.py checkout DIR first.")
        folder = Path(_remembered(home).read_text(encoding="utf-8"))
    patches = exported(folder)
    home.write(render(patches))
    print(f"{home.name}: {len(patches)} patches")


def compare(home: Home, files: dict[str, str]) -> None:
    """Fail where a series' folder differs from ``files``."""
    present = home.present()
    drift = sorted(name for name in {*present, *files} if present.get(name) != files.get(name))
    if drift:
        raise BuildError(
            f"{home.name} is not what the commits export ({', '.join(drift)}); run tools/patches.py "
            "export and commit the result."
        )
    print(f"{home.name}: {len(files) - 1} patches, as exported")


def cmd_verify(home: Home) -> None:
    """Check a series in every way that needs no build."""
    patches = home.patches()
    listed = {f"{patch.name}.patch" for patch in patches} | {"series"}
    faults = [f"{name}: not in series" for name in sorted(home.present()) if name not in listed]
    faults += [f"{patch.name}: {fault}" for patch in patches for fault in patch.faults()]
    with tempfile.TemporaryDirectory() as scratch:
        tree = home.pristine(Path(scratch))
        overlay = copy_overlay(paths.ROOT, tree)
        series.write_files(tree, series.apply_series(patches, series.tree_reader(tree)))
        adapted = adapt_overlay(home.folder, tree)
        if not compileall.compile_dir(tree / "vllm", quiet=2, workers=2):
            said = io.StringIO()
            with contextlib.redirect_stdout(said):  # once more, in this process, what did not compile
                compileall.compile_dir(tree / "vllm", quiet=1)
            faults.append(said.getvalue().replace(f"{tree}/", "").strip())
        count = sum(1 for _ in (tree / "vllm").rglob("*.py"))
    if faults:
        raise BuildError("the series is not sound:\n  " + "\n  ".join(faults))
    print(
        f"{home.name}: {len(patches)} patches apply exactly to {home.version}; {len(overlay)} overlay "
        f"files, none of them upstream; {count} modules compile"
        + (f"; {adapted} changes of the overlay for that release apply" if adapted else "")
    )


def cmd_status(home: Home) -> None:
    """Print a table of a series."""
    patches = home.patches()
    rows = [("patch", "lines", "reason", "forwarded", "remove when")]
    for patch in patches:
        tail = (patch.trailers.get(key, "?") for key in ("Reason", "Forwarded", "Remove-When"))
        reason, forwarded, removal = tail
        rows.append((patch.name, str(patch.changed_lines), reason, forwarded, removal))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        print("  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]]))
    total = sum(patch.changed_lines for patch in patches)
    print(f"{total} of {series.BUDGET} changed lines on vLLM {home.version}")
    if total > series.BUDGET:
        raise BuildError(
            f"the series changes {total} lines where {series.BUDGET} are allowed; move logic into "
            "the overlay."
        )


def cmd_rebase(version: str | None, restart: bool, proceed: bool) -> None:
    """Carry the pinned series to another release and write patches/next/."""
    state = rebase.load_state(_REBASE)
    if proceed:
        if state is None or not state.waiting:
            raise BuildError("no rebase waits for a person; run tools/patches.py rebase VERSION.")
    else:
        if version is None:
            raise BuildError("name the release: tools/patches.py rebase VERSION, or latest.")
        if state is not None and state.waiting and not restart:
            raise BuildError(
                f"a rebase to {state.version} waits for {state.waiting} to be merged in {_REBASE}; "
                "continue it with --continue, or add --restart to begin again."
            )
        state = rebase.start(_REBASE, pinned(paths.ROOT), *find_release(version))
    old = pinned(paths.ROOT)
    rebase.proceed(_REBASE, state, old.patches(), _earlier())
    patches = exported(_REBASE)
    new = replace(
        old,
        folder=old.folder / "next",
        name="patches/next/",
        version=state.version,
        source=state.source,
        by_hand=state.by_hand,
    )
    new.write(render(patches))
    new.write_pin()
    _remember(new, _REBASE)
    print(f"vLLM {old.version} -> {new.version}: patches/next/ has {len(patches)} patches")
    print(report(old.patches(), patches, state, upstream_churn(_REBASE, old.patches())))
    cmd_verify(new)


def _earlier() -> Home | None:
    """Return patches/next/ as an earlier rebase left it."""
    try:
        return following(paths.ROOT)
    except BuildError:
        return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    checkout = commands.add_parser("checkout")
    checkout.add_argument("folder", type=Path)
    export = commands.add_parser("export")
    export.add_argument("folder", type=Path, nargs="?")
    export.add_argument("--check", action="store_true")
    verify, status = commands.add_parser("verify"), commands.add_parser("status")
    for command in (checkout, export, verify, status):
        command.add_argument("--next", action="store_true", help="the series in patches/next/")
    again = commands.add_parser("rebase")
    again.add_argument("version", nargs="?", help="a release such as 0.33.0, or latest")
    again.add_argument("--continue", dest="proceed", action="store_true", help="after a merge by hand")
    again.add_argument("--restart", action="store_true", help="give up the rebase that waits")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status."""
    chosen = _parser().parse_args(arguments)
    try:
        if chosen.command == "rebase":
            cmd_rebase(chosen.version, chosen.restart, chosen.proceed)
            return 0
        home = following(paths.ROOT) if chosen.next else pinned(paths.ROOT)
        if chosen.command == "checkout":
            cmd_checkout(home, chosen.folder)
        elif chosen.command == "export":
            cmd_export(home, chosen.folder, chosen.check)
        elif chosen.command == "verify":
            cmd_verify(home)
        else:
            cmd_status(home)
    except BuildError as error:
        if isinstance(error, rebase.Conflict):
            print(error.instructions, file=sys.stderr)
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
