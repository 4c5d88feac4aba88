"""``tools/proposals.py`` on the made-up upstream."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.build.conftest import Repo

SETTINGS = """\
patches = ["core-hook"]
[[copy]]
from = "vllm/diffusion/__init__.py"
to = "vllm/loops"
replace = [["LIVE", "THERE"]]
[[edit]]
file = "csrc/kernel.cpp"
old = "not for"
new = "for"
"""


def propose(repo: Repo, name: str = "core", settings: str = SETTINGS) -> Path:
    folder = repo.root / "docs" / "upstream" / name
    (folder / "files" / "tests").mkdir(parents=True)
    (folder / "proposal.toml").write_text(settings)
    (folder / "message.txt").write_text("[Core] Open line twelve\n\nWhy.\n")
    (folder / "files" / "tests" / f"test_{name}.py").write_text("def test(): pass\n")
    return folder / f"0001-{name}.patch"


def run(repo: Repo, *arguments: str) -> subprocess.CompletedProcess[str]:
    return repo.python("tools/proposals.py", *arguments)


def test_a_proposal_is_whole_and_applies(repo: Repo, tmp_path: Path) -> None:
    patch = propose(repo)
    done = run(repo, "--tree", str(tmp_path / "tree"))
    assert done.returncode == 0 and "1 proposals apply to vLLM 9.9.0" in done.stdout, done.stderr
    text = patch.read_text()
    assert text.startswith("From " + "0" * 40) and "Subject: [PATCH] [Core] Open line twelve" in text
    git = ["git", "-C", str(tmp_path / "tree"), "-c", "user.name=a", "-c", "user.email=a@localhost"]
    environment = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull}
    subprocess.run([*git, "checkout", "-q", "upstream"], check=True, env=environment)
    subprocess.run([*git, "am", "-q", str(patch)], check=True, env=environment)
    tree = tmp_path / "tree"
    assert 'line12 = "ours"' in (tree / "vllm/engine/core.py").read_text()
    assert (tree / "vllm/loops/__init__.py").read_text() == "THERE = 1\n"
    assert (tree / "csrc/kernel.cpp").read_text() == "for the wheel\n"
    assert (tree / "tests/test_core.py").is_file()


def test_one_proposal_stands_on_another(repo: Repo) -> None:
    propose(repo)
    edit = '[[edit]]\nfile = "vllm/engine/core.py"\nold = \'"ours"\'\nnew = \'"theirs"\'\n'
    second = propose(repo, "another", 'after = "core"\n' + edit)
    assert run(repo).returncode == 0
    assert '-line12 = "ours"\n+line12 = "theirs"' in second.read_text()


def test_a_file_may_be_left_out(repo: Repo) -> None:
    patch = propose(repo, settings='patches = ["core-hook"]\nwithout = ["vllm/engine/core.py"]\n')
    assert run(repo).returncode == 0
    assert "line12" not in patch.read_text() and "tests/test_core.py" in patch.read_text()


def test_check_finds_what_is_stale(repo: Repo) -> None:
    propose(repo)
    repo.fails(run(repo, "--check"), "core/0001-core.patch", "tools/proposals.py")
    assert run(repo).returncode == 0 and run(repo, "--check").returncode == 0
    (repo.root / "vllm/diffusion/__init__.py").write_text("LIVE = 2\n")
    repo.fails(run(repo, "--check"), "core/0001-core.patch")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('old = "not for"', 'old = "nowhere"', "has 'nowhere' 0 times"),
        ("vllm/diffusion/__init__.py", "vllm/gone.py", "no vllm/gone.py to copy"),
    ],
)
def test_a_proposal_that_does_not_fit(repo: Repo, old: str, new: str, words: str) -> None:
    propose(repo, settings=SETTINGS.replace(old, new))
    repo.fails(run(repo), words)
