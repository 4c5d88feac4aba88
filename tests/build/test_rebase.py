"""``tools/patches.py rebase``, on releases of the made-up upstream."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.build.conftest import HOOK, SOURCES

if TYPE_CHECKING:
    from tests.build.conftest import Index, Repo

CORE = "vllm/engine/core.py"


def release(repo: Repo, version: str, **changes: str | None) -> Path:
    """Publish a release; ``changes`` maps a path (dots for slashes) to new text, or None to remove it."""
    files: dict[str, str | None] = {**SOURCES, **changes}
    path = repo.artefacts / f"vllm-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            if text is not None:
                member = tarfile.TarInfo(f"vllm-{version}/{name}")
                member.size = len(text.encode())
                archive.addfile(member, io.BytesIO(text.encode()))
    return path


def with_core(old: str, new: str) -> dict[str, str]:
    assert old in SOURCES[CORE]
    return {CORE: SOURCES[CORE].replace(old, new)}


def tool(repo: Repo, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return repo.python("tools/patches.py", *arguments, **env)


def ok(repo: Repo, *arguments: str, **env: str) -> str:
    done = tool(repo, *arguments, **env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def after(repo: Repo, name: str = "core-hook") -> str:
    return (repo.root / "patches" / "next" / f"{name}.patch").read_text()


def test_moves_with_its_surroundings(repo: Repo, tmp_path: Path) -> None:
    release(repo, "9.9.1", **with_core("line2 = 2\n", "line2 = 2\nnew = 0\nnewer = 0\n"))
    said = ok(repo, "rebase", "9.9.1")
    assert "vLLM 9.9.0 -> 9.9.1: patches/next/ has 1 patches" in said
    assert "core-hook     2 -> 2  moved with its surroundings" in said
    assert f"{CORE}  +2 -0" in said
    assert "1 patches apply exactly to 9.9.1" in said
    assert "@@ -11,7 +11,7 @@" in after(repo) and "@@ -9,7 +9,7 @@" in HOOK
    assert after(repo).partition("\ndiff --git")[0] == HOOK.partition("\ndiff --git")[0]
    series = (repo.root / "patches" / "next" / "series").read_text().splitlines()
    assert series[1:] == ["core-hook.patch"]
    assert (repo.root / "patches" / "core-hook.patch").read_text() == HOOK  # the pin's own is untouched
    ok(repo, "export", "--next", "--check")
    ok(repo, "verify", "--next")
    assert "2 of 300 changed lines on vLLM 9.9.1" in ok(repo, "status", "--next")
    ok(repo, "checkout", "--next", str(tmp_path / "next"))
    assert "newer = 0" in (tmp_path / "next" / CORE).read_text()
    ok(repo, "verify")  # the pinned series is as it was


def test_unchanged(repo: Repo) -> None:
    release(repo, "9.9.1", **{"vllm/other.py": "OTHER = 1\n"})
    said = ok(repo, "rebase", "9.9.1")
    assert "core-hook     2 -> 2  unchanged" in said and f"{CORE}  nothing" in said
    assert after(repo) == HOOK


def test_what_upstream_has_is_left_out(repo: Repo) -> None:
    second = (
        HOOK.replace("core-hook: ", "late-hook: ").replace("12 = 12", "22 = 22").replace("12 = ", "22 = ")
    )
    for number in range(9, 16):
        second = second.replace(f" line{number} = {number}\n", f" line{number + 10} = {number + 10}\n")
    repo.add_patch(second.replace("@@ -9,7 +9,7 @@ line8 = 8", "@@ -19,7 +19,7 @@ line18 = 18"))
    release(repo, "9.9.1", **with_core("line12 = 12", 'line12 = "ours"'))
    said = ok(repo, "rebase", "9.9.1")
    assert "core-hook     2 -> 0  left out: upstream has it" in said
    assert "late-hook     2 -> 2  unchanged" in said
    series = (repo.root / "patches" / "next" / "series").read_text()
    assert "core-hook" not in series and "late-hook" in series


def test_follows_a_file_that_moved(repo: Repo) -> None:
    moved = {CORE: None, "vllm/engine/kernel.py": SOURCES[CORE].replace("line25", "other")}
    release(repo, "9.9.1", **moved)
    assert "follows code that upstream moved" in ok(repo, "rebase", "9.9.1")
    assert "+++ b/vllm/engine/kernel.py" in after(repo)


def test_conflict_stops_with_instructions_and_goes_on(repo: Repo) -> None:
    release(repo, "9.9.1", **with_core("line12 = 12", "line12 = 1212"))
    done = tool(repo, "rebase", "9.9.1")
    repo.fails(done, "core-hook conflicts with vLLM 9.9.1", CORE)
    work = repo.root / "build" / "rebase" / CORE
    for words in ("rebase --continue", "reset --hard", "--restart 9.9.1", str(work)):
        assert words in done.stderr
    assert not (repo.root / "patches" / "next").exists()  # nothing is written before it is whole

    repo.fails(tool(repo, "rebase", "9.9.1"), "waits for core-hook", "--restart")
    repo.fails(tool(repo, "rebase", "--continue"), "conflict markers")
    text = work.read_text()
    start, end = text.index("<<<<<<<"), text.index("line13")
    for line in ("line12 = 1212", "line12 = 12", 'line12 = "ours"'):
        assert line in text[start:end].splitlines()
    work.write_text(text[:start] + 'line12 = "both"\n' + text[end:])
    assert "core-hook     2 -> 2  merged by hand" in ok(repo, "rebase", "--continue")
    assert '-line12 = 1212\n+line12 = "both"' in after(repo)
    ok(repo, "verify", "--next")

    # The merge is remembered, in the folder that is committed.
    whole = after(repo)
    assert "merged by hand before" in tool(repo, "rebase", "9.9.1").stderr
    assert after(repo) == whole
    # It is not used once the pinned patch says something else.
    patch = repo.root / "patches" / "core-hook.patch"
    patch.write_text(HOOK.replace('"ours"', '"changed"'))
    repo.fails(tool(repo, "rebase", "9.9.1"), "core-hook conflicts")
    patch.write_text(HOOK)
    ok(repo, "rebase", "--restart", "9.9.1")
    assert after(repo) == whole


def test_a_person_may_leave_a_patch_out_or_commit_it(repo: Repo) -> None:
    release(repo, "9.9.1", **with_core("line12 = 12", "line12 = 1212"))
    work = repo.root / "build" / "rebase"
    git = ("git", "-C", str(work), "-c", "user.name=a", "-c", "user.email=a@localhost")
    assert tool(repo, "rebase", "9.9.1").returncode == 1
    (work / CORE).write_text((work / CORE).read_text().partition("<<<<<<<")[0] + "line12 = 0\n")
    subprocess.run([*git, "commit", "-qam", HOOK.partition("\ndiff")[0]], check=True)
    assert "merged by hand" in ok(repo, "rebase", "--continue")

    (repo.root / "patches" / "next" / "pin.toml").unlink()
    assert tool(repo, "rebase", "9.9.1").returncode == 1
    subprocess.run([*git, "reset", "-q", "--hard"], check=True)
    assert "left out: upstream has it" in ok(repo, "rebase", "--continue")
    assert not (repo.root / "patches" / "next" / "core-hook.patch").exists()
    assert "left out" in ok(repo, "rebase", "9.9.1")  # remembered too


def test_an_overlay_path_that_the_new_release_has(repo: Repo) -> None:
    release(repo, "9.9.1", **{"vllm/engine/ours.py": ""})
    repo.fails(tool(repo, "rebase", "9.9.1"), "vllm/engine/ours.py", "upstream has too")


def test_a_tree_that_does_not_compile(repo: Repo) -> None:
    release(repo, "9.9.1", **{"vllm/model/newer.py": "type = = 3\n"})
    done = tool(repo, "rebase", "9.9.1")
    assert done.returncode == 1 and "vllm/model/newer.py" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("rebase", "9.9.7"), "offers no sdist of vllm 9.9.7; the newest it has is 9.9.0"),
        (("rebase",), "name the release"),
        (("rebase", "--continue"), "no rebase waits"),
        (("verify", "--next"), "tools/patches.py rebase VERSION"),
    ],
)
def test_refusals(repo: Repo, arguments: tuple[str, ...], words: str) -> None:
    repo.fails(tool(repo, *arguments), words)


@pytest.mark.parametrize("html", [False, True])
def test_latest_from_the_index(repo: Repo, index: Index, html: bool) -> None:
    index.html = html
    for version in ("9.9.9", "9.10.0", "9.11.0rc1"):
        release(repo, version)
    assert "9.9.0 -> 9.10.0" in ok(repo, "rebase", "latest")
    pin = (repo.root / "patches" / "next" / "pin.toml").read_text()
    digest = hashlib.sha256((repo.artefacts / "vllm-9.10.0.tar.gz").read_bytes()).hexdigest()
    assert f'sha256 = "{digest}"' in pin
    fetched = [path for path, _ in index.files()]
    assert fetched.count("/files/vllm-9.10.0.tar.gz") == 1
    ok(repo, "rebase", "9.10.0")  # from the cache
    assert len([path for path, _ in index.files() if "9.10.0" in path]) == 1


def test_a_broken_download_leaves_nothing(repo: Repo, index: Index) -> None:
    release(repo, "9.9.1")
    ok(repo, "verify")  # the pin's own is in the cache
    index.drop_after = 20
    repo.fails(tool(repo, "rebase", "9.9.1"), "vllm-9.9.1.tar.gz could not be downloaded")
    assert not list(Path(repo.env["VLLM_UPSTREAM_CACHE"]).glob("vllm-9.9.1*"))
    repo.fails(tool(repo, "rebase", "9.9.2", PIP_INDEX_URL="http://127.0.0.1:9/simple"), "cannot be reached")


def test_a_release_that_changed_after_the_rebase(repo: Repo) -> None:
    release(repo, "9.9.1")
    ok(repo, "rebase", "9.9.1")
    release(repo, "9.9.1", **with_core("line1 = 1\n", "line1 = 'someone else'\n"))
    repo.fails(tool(repo, "verify", "--next"), "vllm-9.9.1.tar.gz", "sha256")
