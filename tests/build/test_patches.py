"""The patch series: exact application, and the developer's command."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from build_support import udiff
from build_support.errors import BuildError
from build_support.series import Patch, apply_series

if TYPE_CHECKING:
    from tests.build.conftest import Repo

OLD = "".join(f"{n}\n" for n in range(1, 21))


def hunk(at: int, old: str = "", new: str = "ours") -> str:
    """Return a hunk that changes line ``at`` of OLD, with one line of context each side."""
    before = old or str(at)
    return f"@@ -{at - 1},3 +{at - 1},3 @@\n {at - 1}\n-{before}\n+{new}\n {at + 1}\n"


def diff(*hunks: str, path: str = "vllm/a.py") -> str:
    return f"diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n" + "".join(hunks)


def apply(text: str, content: str = OLD) -> str:
    files = udiff.parse("some-hook", text)
    return udiff.apply("some-hook", files, lambda path: content)["vllm/a.py"]


def test_applies_in_place() -> None:
    lines = apply(diff(hunk(3), hunk(10, new="ten"))).splitlines()
    assert lines[2] == "ours" and lines[9] == "ten" and len(lines) == 20


def test_later_hunks_are_placed_in_the_old_file() -> None:
    grow = "@@ -1,2 +1,4 @@\n 1\n+a\n+b\n 2\n"
    assert apply(diff(grow, hunk(10).replace("+9,3", "+11,3"))).splitlines()[11] == "ours"


@pytest.mark.parametrize("shift", [-1, 1, 5])
def test_a_hunk_that_fits_elsewhere_is_refused(shift: int) -> None:
    moved = "x\n" * shift + OLD if shift > 0 else OLD.split("\n", 1)[1]
    with pytest.raises(BuildError, match=r"some-hook .*hunk 2 of vllm/a\.py \(line 9\)"):
        apply(diff("@@ -20,0 +21 @@\n+x\n".replace("20,0", "0,0"), hunk(10)), moved)


def test_context_must_match_exactly() -> None:
    with pytest.raises(BuildError, match=r"hunk 1 of vllm/a\.py"):
        apply(diff(hunk(10)), OLD.replace("11\n", "11 \n"))


def test_a_last_line_without_newline() -> None:
    text = diff("@@ -2 +2 @@\n-b\n\\ No newline at end of file\n+c\n\\ No newline at end of file\n")
    assert apply(text, "a\nb") == "a\nc"
    with pytest.raises(BuildError):
        apply(text, "a\nb\n")


def test_only_line_feeds_end_lines() -> None:
    assert apply(diff("@@ -2 +2 @@\n-b\n+c\n"), "a\x0c\u2028\r\nb\n") == "a\x0c\u2028\r\nc\n"


@pytest.mark.parametrize(
    "text",
    [
        diff(hunk(3)).replace("--- a/vllm/a.py", "new file mode 100644\n--- /dev/null"),
        diff(hunk(3)).replace("+++ b/vllm/a.py", "+++ /dev/null"),
        diff(hunk(3)).replace("+++ b/vllm/a.py", "+++ b/vllm/b.py"),
        diff(hunk(3)).replace(",3 @@", ",4 @@"),
        diff(hunk(3)).replace("-3\n", ""),
        diff(),
        diff(hunk(3)) + "stray\n",
    ],
)
def test_what_is_not_a_change_of_a_file_is_refused(text: str) -> None:
    with pytest.raises(BuildError, match=r"some-hook is malformed .*tools/patches\.py export\.$"):
        udiff.parse("some-hook", text)


def test_the_series_is_all_or_nothing() -> None:
    first = Patch("first", "first: x", diff(hunk(3)))
    second = Patch("second", "second: x", diff(hunk(3, old="ours", new="both")))
    third = Patch("third", "third: x", diff(hunk(3)))
    assert apply_series([first, second], lambda path: OLD)["vllm/a.py"].splitlines()[2] == "both"
    with pytest.raises(BuildError, match="patch third"):
        apply_series([first, second, third], lambda path: OLD)


def tool(repo: Repo, *arguments: str) -> subprocess.CompletedProcess[str]:
    return repo.python("tools/patches.py", *arguments)


def ok(repo: Repo, *arguments: str) -> str:
    done = tool(repo, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def commit(folder: Path, path: str, old: str, new: str, message: str) -> None:
    target = folder / path
    target.write_text(target.read_text().replace(old, new))
    identity = ("-c", "user.name=a", "-c", "user.email=a@localhost")
    subprocess.run(
        ["git", "-C", folder, *identity, "commit", "-qam", message],
        check=True,
        env=os.environ | {"GIT_CONFIG_GLOBAL": os.devnull},
    )


TAIL = "\n\nWhy.\n\nReason: hook\nForwarded: no\nRemove-When: never\n  at all\nTest: t"


def test_checkout_commit_export(repo: Repo, tmp_path: Path) -> None:
    before = {p.name: p.read_text() for p in (repo.root / "patches").iterdir()}
    folder = tmp_path / "checkout"
    assert "1 patches" in ok(repo, "checkout", str(folder))
    log = subprocess.check_output(["git", "-C", folder, "log", "--format=%s"], text=True)
    assert log.splitlines() == ["core-hook: open line twelve", "vLLM 9.9.0, as released"]
    assert not (folder / "csrc").exists()
    ok(repo, "export")
    after = {p.name: p.read_text() for p in (repo.root / "patches").iterdir()}
    assert after["core-hook.patch"] == before["core-hook.patch"]

    commit(folder, "vllm/engine/core.py", "line20 = 20", "line20 = 0", "late-hook: x" + TAIL)
    assert "2 patches" in ok(repo, "export", str(folder))
    series = (repo.root / "patches/series").read_text().splitlines()
    assert [line for line in series if line[0] != "#"] == ["core-hook.patch", "late-hook.patch"]
    ok(repo, "export", "--check")
    ok(repo, "verify")
    table = ok(repo, "status")
    assert "late-hook" in table and "never at all" in table and "4 of 300" in table

    subprocess.run(["git", "-C", folder, "reset", "-q", "--hard", "HEAD~1"], check=True)
    ok(repo, "export")
    assert not (repo.root / "patches/late-hook.patch").exists()


def test_export_does_not_depend_on_the_users_git(repo: Repo, tmp_path: Path) -> None:
    config = tmp_path / "gitconfig"
    config.write_text("[diff]\n\tnoprefix = true\n\tcontext = 9\n[core]\n\tautocrlf = true\n")
    repo.env["GIT_CONFIG_GLOBAL"] = str(config)
    repo.env["GIT_EXTERNAL_DIFF"] = "false"
    ok(repo, "checkout", str(tmp_path / "checkout"))
    ok(repo, "export")
    ok(repo, "export", "--check")


def test_a_hand_edited_patch_is_drift(repo: Repo, tmp_path: Path) -> None:
    ok(repo, "checkout", str(tmp_path / "checkout"))
    ok(repo, "export")
    patch = repo.root / "patches/core-hook.patch"
    patch.write_text(patch.read_text().replace("@@ line8 = 8", "@@ line7 = 7"))
    repo.fails(tool(repo, "export", "--check"), "core-hook.patch", "tools/patches.py export")


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("Fix a thing" + TAIL, "name: what it does"),
        ("0001-late: x" + TAIL, "name: what it does"),
        ("core-hook: again" + TAIL, "two commits are named core-hook"),
    ],
)
def test_export_refuses_a_badly_named_commit(repo: Repo, tmp_path: Path, message: str, words: str) -> None:
    folder = tmp_path / "checkout"
    ok(repo, "checkout", str(folder))
    commit(folder, "vllm/engine/core.py", "line20", "line_20", message)
    repo.fails(tool(repo, "export"), words)


def test_export_refuses_what_is_not_committed(repo: Repo, tmp_path: Path) -> None:
    folder = tmp_path / "checkout"
    ok(repo, "checkout", str(folder))
    (folder / "vllm" / "new.py").write_text("")
    repo.fails(tool(repo, "export"), "uncommitted")


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("Reason: hook", "Reason: because", "not one of upstreamable, hook, divergent"),
        ("Remove-When: upstream has such a hook\n", "", "Remove-When: is missing"),
        ("core-hook: open", "open", "does not start with 'core-hook: "),
        ("An overlay cannot change a line of upstream's file.\n\n", "", "why an overlay"),
        ('line12 = "ours"', 'line12 = "', "unterminated string"),
    ],
)
def test_verify_finds_faults(repo: Repo, old: str, new: str, fault: str) -> None:
    patch = repo.root / "patches/core-hook.patch"
    text = patch.read_text()
    assert old in text
    patch.write_text(text.replace(old, new))
    done = tool(repo, "verify")
    assert done.returncode == 1 and fault in done.stderr and "Traceback" not in done.stderr


def test_verify_finds_an_unlisted_patch_and_a_collision(repo: Repo) -> None:
    (repo.root / "patches/stray.patch").write_text("")
    assert "stray.patch: not in series" in tool(repo, "verify").stderr
    (repo.root / "patches/stray.patch").unlink()
    (repo.root / "vllm/engine/core.py").write_text("")
    repo.fails(tool(repo, "verify"), "vllm/engine/core.py")


def test_status_fails_over_the_budget(repo: Repo) -> None:
    new = "".join(f"+x{n} = 0\n" for n in range(301))
    patch = diff(f"@@ -1 +1,302 @@\n line1 = 1\n{new}", path="vllm/engine/core.py")
    repo.add_patch("big-hook: x" + TAIL + "\n\n" + patch)
    repo.fails(tool(repo, "status"), "303 lines where 300 are allowed")
