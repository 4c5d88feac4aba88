"""Carries the series to another upstream release: three-way, patch by patch.

The work folder is a git repository with both releases. A patch is merged with its own state on the
pinned release as the ancestor, so that what upstream moved is followed, and only lines that both
sides changed are a conflict. What is under way is kept in ``.git/rebase.json``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from build_support import gitrepo, series
from build_support.errors import BuildError
from build_support.home import Home
from build_support.pin import Artefact
from build_support.progress import say

OLD_BASE = "upstream-pinned"
OLD_SERIES = "series-pinned"
_STATE = Path(".git") / "rebase.json"
_MARKERS = ("<<<<<<< ", ">>>>>>> ")


class Conflict(BuildError):
    """A patch needs a person; ``instructions`` say what to do, the message is the short form."""

    def __init__(self, message: str, instructions: str) -> None:
        super().__init__(message)
        self.instructions = instructions


@dataclass
class State:
    """How far a rebase has come.

    Attributes:
        version: the release it goes to.
        source: that release's sdist.
        waiting: the patch that a person is merging.
        dropped: patches that changed nothing any more: upstream has them.
        by_hand: patch -> digest of the pinned diff that was merged by hand, now or earlier.
    """

    version: str
    source: Artefact
    waiting: str | None = None
    dropped: list[str] = field(default_factory=list)
    by_hand: dict[str, str] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write it into the work folder."""
        (folder / _STATE).write_text(json.dumps(asdict(self)), encoding="utf-8")


def load_state(folder: Path) -> State | None:
    """Return the state of the rebase in ``folder``, or None where none was started."""
    path = folder / _STATE
    if not path.is_file():
        return None
    data = json.loads(path.read_text(encoding="utf-8"))
    return State(**data | {"source": Artefact(**data["source"])})


def digest(patch: series.Patch) -> str:
    """Return what a resolution by hand is tied to: the pinned patch's diff."""
    return hashlib.sha256(patch.diff.encode()).hexdigest()[:16]


def start(folder: Path, old: Home, version: str, source: Artefact) -> State:
    """Make the work folder: pinned release, its series, then the new release as the base."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    old.pristine(folder)
    gitrepo.start(folder, f"vLLM {old.version}, as released\n")
    apply_each(folder, old.patches())
    gitrepo.git(folder, "tag", OLD_BASE, gitrepo.BASE)
    gitrepo.git(folder, "tag", OLD_SERIES)
    gitrepo.git(folder, "reset", "--quiet", "--hard", gitrepo.BASE)
    for entry in folder.iterdir():
        if entry.name != ".git":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    Home(old.folder, old.name, version, source).pristine(folder)
    gitrepo.commit_release(folder, f"vLLM {version}, as released\n")
    state = State(version, source)
    state.save(folder)
    return state


def apply_each(folder: Path, patches: list[series.Patch]) -> None:
    """Apply the patches exactly, one commit each."""
    read = series.tree_reader(folder)
    for patch in patches:
        series.write_files(folder, series.apply_series([patch], read))
        gitrepo.commit_all(folder, patch.header.rstrip() + "\n")


def names(folder: Path) -> list[str]:
    """Return the names of the patches that are commits already."""
    listed = gitrepo.git(folder, "rev-list", "--reverse", f"{gitrepo.BASE}..HEAD").split()
    return [gitrepo.name_of(gitrepo.message(folder, commit)) for commit in listed]


def proceed(folder: Path, state: State, patches: list[series.Patch], earlier: Home | None) -> None:
    """Re-apply what is left of the series.

    Args:
        folder: the work folder.
        state: updated, and saved, as patches are done.
        patches: the pinned series.
        earlier: an earlier result for the same release, whose merges by hand are used again.

    Raises:
        Conflict: a person must merge a patch.
    """
    if state.waiting:
        _take_up(folder, state, {patch.name: patch for patch in patches}[state.waiting])
    done = {*names(folder), *state.dropped}
    commits = gitrepo.git(folder, "rev-list", "--reverse", f"{OLD_BASE}..{OLD_SERIES}").split()
    for patch, commit in zip(patches, commits, strict=True):
        if patch.name in done:
            continue
        if earlier is not None and _again(folder, state, patch, earlier):
            continue
        if not gitrepo.merge(folder, commit):
            state.waiting = patch.name
            state.save(folder)
            raise _conflict(folder, state, patch)
        if not gitrepo.changed(folder):
            state.dropped.append(patch.name)
        else:
            gitrepo.commit_all(folder, patch.header.rstrip() + "\n")
        state.save(folder)


def _again(folder: Path, state: State, patch: series.Patch, earlier: Home) -> bool:
    """Use an earlier merge by hand of the very same patch, if it applies exactly."""
    if earlier.version != state.version or earlier.by_hand.get(patch.name) != digest(patch):
        return False
    merged = {each.name: each for each in earlier.patches()}.get(patch.name)
    if merged is None:
        state.dropped.append(patch.name)
    else:
        try:
            files = series.apply_series([merged], series.tree_reader(folder))
        except BuildError:
            return False
        series.write_files(folder, files)
        gitrepo.commit_all(folder, patch.header.rstrip() + "\n")
    say(f"{patch.name}: merged by hand before; the same result is used")
    state.by_hand[patch.name] = digest(patch)
    state.save(folder)
    return True


def _take_up(folder: Path, state: State, patch: series.Patch) -> None:
    """Commit what a person merged."""
    for name in gitrepo.changed(folder):
        text = (folder / name).read_text("utf-8") if (folder / name).is_file() else ""
        if any(line.startswith(_MARKERS) for line in text.splitlines()):
            raise BuildError(
                f"{folder / name} still has conflict markers; resolve them, then run tools/patches.py "
                "rebase --continue."
            )
    if gitrepo.changed(folder):
        gitrepo.commit_all(folder, patch.header.rstrip() + "\n")
    elif patch.name not in names(folder):  # or the person committed it
        gitrepo.git(folder, "reset", "--quiet")
        state.dropped.append(patch.name)
    state.by_hand[patch.name] = digest(patch)
    state.waiting = None
    state.save(folder)


def _conflict(folder: Path, state: State, patch: series.Patch) -> Conflict:
    files = gitrepo.unmerged(folder)
    listed = "\n".join(f"  {folder / name}" for name in files)
    return Conflict(
        f"{patch.name} conflicts with vLLM {state.version} in {', '.join(files)}.",
        f"""{patch.name}: upstream changed the same lines. In
{listed}
each conflict shows upstream's new lines first, what stood there in the pinned release next, and the
patch's lines last. Write what the patch should be there now (a file that upstream removed: make the
change where the code went), then

  python3 tools/patches.py rebase --continue

If upstream now does what the patch does, leave upstream's lines everywhere:
  git -C {folder} reset --hard
and --continue leaves the patch out. To start over: tools/patches.py rebase --restart {state.version}
What upstream did there:
  git -C {folder} diff {OLD_BASE} {gitrepo.BASE} -- {" ".join(files)}
""",
    )
