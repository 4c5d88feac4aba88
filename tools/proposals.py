#!/usr/bin/env python3
"""Makes the patches of ``docs/upstream/`` from the series, the overlay and what lies beside each proposal.

    tools/proposals.py                 write NAME/0001-NAME.patch of every proposal
    tools/proposals.py --check         fail if they are not what would be written
    tools/proposals.py --tree DIR      leave the release with every proposal as a branch in DIR

A proposal is a folder with ``proposal.toml`` (docs/upstream/README.md says what may stand in it),
``message.txt`` and ``files/``. Its patch is ``git format-patch`` output that applies to the pinned release,
or to the proposal that it names as ``after``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from build_support import gitrepo, paths, rebase
from build_support.errors import BuildError
from build_support.fetch import fetch
from build_support.home import pinned

PROPOSALS = paths.ROOT / "docs" / "upstream"
_FORMAT = ("--stdout", "--zero-commit", "--no-signature", "--full-index", "--no-renames", "--unified=3")


def proposals() -> dict[str, dict[str, Any]]:
    """Return name -> settings, each after the one it stands on."""
    found = {
        path.parent.name: tomllib.loads(path.read_text("utf-8"))
        for path in sorted(PROPOSALS.glob("*/proposal.toml"))
    }
    return dict(sorted(found.items(), key=lambda item: ("after" in item[1], item[0])))


def base(folder: Path, settings: list[dict[str, Any]]) -> None:
    """Make a repository of the pinned release with the series on it, then go back to the release.

    The files outside ``vllm/`` that a proposal edits are part of the release's commit.
    """
    home = pinned(paths.ROOT)
    home.pristine(folder)
    wanted = {edit["file"] for each in settings for edit in each.get("edit", [])}
    with tarfile.open(fetch(home.source), "r:gz") as archive:
        for member in archive:
            name = member.name.partition("/")[2]
            stream = archive.extractfile(member) if name in wanted else None
            if stream is not None:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(stream.read())
    gitrepo.start(folder, f"vLLM {home.version}, as released\n")
    rebase.apply_each(folder, home.patches())
    for patch, commit in zip(home.patches(), gitrepo.commits(folder), strict=True):
        gitrepo.git(folder, "tag", f"series/{patch.name}", commit)


def build(folder: Path, name: str, settings: dict[str, Any]) -> str:
    """Make a proposal's commit on a branch of its own; return its patch."""
    start = f"proposal/{settings['after']}" if "after" in settings else gitrepo.BASE
    gitrepo.git(folder, "checkout", "--quiet", "--force", "-b", f"proposal/{name}", start)
    for patch in settings.get("patches", []):
        if not gitrepo.merge(folder, f"series/{patch}"):
            raise BuildError(f"{patch} conflicts with the release when alone; split the patch.")
    for path in settings.get("without", []):
        gitrepo.git(folder, "checkout", "HEAD", "--", path)
    for copy in settings.get("copy", []):
        _copy(folder, name, copy)
    files = PROPOSALS / name / "files"
    if files.is_dir():
        shutil.copytree(files, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    for edit in settings.get("edit", []):
        text = (folder / edit["file"]).read_text("utf-8")
        if text.count(edit["old"]) != 1:
            raise BuildError(f"{name}: {edit['file']} has {edit['old']!r} {text.count(edit['old'])} times.")
        (folder / edit["file"]).write_text(text.replace(edit["old"], edit["new"]), encoding="utf-8")
    gitrepo.commit_all(folder, (PROPOSALS / name / "message.txt").read_text("utf-8"))
    return gitrepo.git(folder, "format-patch", "-1", *_FORMAT, "HEAD")


def _copy(folder: Path, name: str, copy: dict[str, Any]) -> None:
    """Copy files of this repository, with words replaced."""
    sources = sorted(paths.ROOT.glob(copy["from"]))
    if not sources:
        raise BuildError(f"{name}: there is no {copy['from']} to copy; correct its proposal.toml.")
    for source in sources:
        text = source.read_text("utf-8")
        for old, new in copy.get("replace", []):
            text = text.replace(old, new)
        target = folder / copy["to"] / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def main() -> int:
    """Write or check the patches."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--tree", type=Path)
    chosen = parser.parse_args()
    stale: list[str] = []
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = chosen.tree or Path(scratch) / "tree"
            folder.mkdir(parents=True)
            found = proposals()
            base(folder, list(found.values()))
            for name, settings in found.items():
                patch = build(folder, name, settings)
                target = PROPOSALS / name / f"0001-{name}.patch"
                if chosen.check and (not target.is_file() or target.read_text("utf-8") != patch):
                    stale.append(str(target.relative_to(paths.ROOT)))
                elif not chosen.check:
                    target.write_text(patch, encoding="utf-8")
        if stale:
            raise BuildError(
                f"{', '.join(stale)}: not what the series and the overlay make; run tools/proposals.py."
            )
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"docs/upstream/: {len(found)} proposals apply to vLLM {pinned(paths.ROOT).version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
