"""git, as the patch tools use it: independent of the user's settings, same output everywhere."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from build_support.errors import BuildError

BASE = "upstream"
_NAME = ("vllm-diffusion patches", "patches@localhost")
_DATE = "2000-01-01T00:00:00+0000"
_DIFF = (
    "--no-color",
    "--no-ext-diff",
    "--no-textconv",
    "--no-renames",
    "--unified=3",
    "--inter-hunk-context=0",
    "--diff-algorithm=histogram",
    "--indent-heuristic",
    "--src-prefix=a/",
    "--dst-prefix=b/",
)


def git(folder: Path, *arguments: str, stdin: str | None = None) -> str:
    """Run git in ``folder`` and return its output.

    Raises:
        BuildError: git is missing or fails.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")} | {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": _NAME[0],
        "GIT_AUTHOR_EMAIL": _NAME[1],
        "GIT_AUTHOR_DATE": _DATE,
        "GIT_COMMITTER_NAME": _NAME[0],
        "GIT_COMMITTER_EMAIL": _NAME[1],
        "GIT_COMMITTER_DATE": _DATE,
        "LC_ALL": "C.UTF-8",
    }
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "-c", "core.quotePath=false", *arguments],
            env=environment,
            input=None if stdin is None else stdin.encode("utf-8"),
            capture_output=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise BuildError("git is not installed; install it to work on the patches.") from error
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()
        command = next(word for word in arguments if not word.startswith("-") and "=" not in word)
        raise BuildError(f"git {command} failed in {folder}: {said}")
    return done.stdout.decode("utf-8")


def start(folder: Path, message_text: str) -> None:
    """Make ``folder`` a repository whose first commit, tagged ``BASE``, is what lies in it."""
    git(folder, "init", "--quiet", "--initial-branch=patches")
    (folder / ".git" / "info" / "exclude").write_text("__pycache__/\n*.so\n", encoding="utf-8")
    git(folder, "config", "core.autocrlf", "false")
    git(folder, "config", "gc.auto", "0")
    commit_release(folder, message_text)


def commit_all(folder: Path, message_text: str) -> None:
    """Commit every change in the work tree."""
    git(folder, "add", "--all", ".")
    git(folder, "commit", "--quiet", "--cleanup=verbatim", "--file=-", stdin=message_text)


def commit_release(folder: Path, message_text: str) -> None:
    """Commit the work tree as it is, ignored files too, and move the tag ``BASE`` there."""
    git(folder, "add", "--all", "--force", ".")
    options = ("--quiet", "--allow-empty", "--cleanup=verbatim", "--file=-")
    git(folder, "commit", *options, stdin=message_text)
    git(folder, "tag", "--force", BASE)


def commits(folder: Path) -> list[str]:
    """Return the commits of the series, first first.

    Raises:
        BuildError: the tag is missing, something is uncommitted, or there is a merge.
    """
    if git(folder, "status", "--porcelain").strip():
        raise BuildError(f"{folder} has uncommitted changes; commit or amend them, then export.")
    if git(folder, "rev-list", "--merges", f"{BASE}..HEAD").strip():
        raise BuildError(f"{folder} has a merge commit; keep the series a straight line.")
    return git(folder, "rev-list", "--reverse", f"{BASE}..HEAD").split()


def merge(folder: Path, commit: str) -> bool:
    """Merge one commit's change into the work tree, three-way; return whether it went smoothly.

    Where it did not, the files have conflict markers that show the common ancestor too.

    Raises:
        BuildError: git failed for another reason than a conflict.
    """
    options = ("-c", "merge.conflictStyle=diff3", "-c", "merge.renames=true")
    try:
        git(folder, *options, "cherry-pick", "--no-commit", "-Xdiff-algorithm=histogram", commit)
    except BuildError:
        if not unmerged(folder):
            raise
        return False
    return True


def unmerged(folder: Path) -> list[str]:
    """Return the files with conflicts that nobody has resolved."""
    return git(folder, "diff", "--name-only", "--diff-filter=U").splitlines()


def changed(folder: Path) -> list[str]:
    """Return the files that differ from the last commit."""
    new = git(folder, "ls-files", "--others", "--exclude-standard").splitlines()
    return sorted({*git(folder, "diff", "--name-only", "HEAD").splitlines(), *new})


def name_of(message_text: str) -> str:
    """Return the patch's name: what stands before the first colon of a commit's message."""
    return message_text.partition(":")[0].strip()


def message(folder: Path, commit: str) -> str:
    """Return a commit's message."""
    return git(folder, "log", "-1", "--format=%B", commit)


def diff(folder: Path, commit: str) -> str:
    """Return a commit's diff, without the object names that its place in history determines."""
    text = git(folder, "diff-tree", "--no-commit-id", "-r", "-p", *_DIFF, commit)
    out: list[str] = []
    in_head = False
    for line in text.split("\n"):
        if line.startswith("diff --git "):
            in_head = True
        elif line.startswith("@@ "):
            in_head = False
        if not (in_head and line.startswith("index ")):
            out.append(line)
    return "\n".join(out)
