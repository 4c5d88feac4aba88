"""What the installed distribution holds; skipped where the fork is not installed."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from build_support import paths
from build_support.overlay import overlay_files
from build_support.pin import load_pin
from build_support.series import read_series


@pytest.fixture(scope="module")
def installed() -> importlib.metadata.Distribution:
    try:
        distribution = importlib.metadata.distribution("vllm")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("vllm is not installed here")
    if any(str(file).startswith("__editable__") for file in distribution.files or []):
        pytest.skip("an editable install has no files of its own")
    return distribution


def test_version_is_the_forks(installed: importlib.metadata.Distribution) -> None:
    pin = load_pin(paths.ROOT)
    assert installed.version in {pin.fork_version(device) for device in pin.objects}


def test_only_vllm_and_metadata(installed: importlib.metadata.Distribution) -> None:
    roots = {file.parts[0] for file in installed.files or [] if file.parts[0] != ".."}
    assert roots == {"vllm", f"vllm-{installed.version}.dist-info"}
    outside = {str(file) for file in installed.files or [] if file.parts[0] == ".."}
    assert all(name.endswith("/bin/vllm") for name in outside), outside


def test_nothing_of_ours_is_lost(installed: importlib.metadata.Distribution) -> None:
    home = Path(str(installed.locate_file("")))
    for name in overlay_files(paths.ROOT):
        assert (home / name).read_bytes() == (paths.ROOT / name).read_bytes(), name
    for patch in read_series(paths.ROOT / "patches"):
        for file in patch.files:
            text = (home / file.path).read_text("utf-8")
            assert all("".join(hunk.new) in text for hunk in file.hunks) or file.path in {
                other.path
                for later in read_series(paths.ROOT / "patches")
                for other in later.files
                if later.name != patch.name
            }, (patch.name, file.path)


def test_nothing_of_upstream_is_lost(installed: importlib.metadata.Distribution) -> None:
    pin = load_pin(paths.ROOT)
    artefact = pin.objects["cpu" if installed.version.endswith(".cpu") else "cuda"]
    wheels = [paths.cache_dir() / artefact.file]
    if (folder := paths.upstream_dir()) is not None:
        wheels.append(folder / artefact.file)
    wheel = next((path for path in wheels if path.is_file()), None)
    if wheel is None:
        pytest.skip(f"{artefact.file} is not on this machine")
    theirs = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("vllm/")}
    assert theirs <= {str(file) for file in installed.files or []}


def test_imported_from_the_environment_not_the_source_folder(
    installed: importlib.metadata.Distribution,
) -> None:
    code = (
        "import importlib.util as u\n"
        "for name in ('vllm', 'vllm.spinloop', 'vllm._diffusion_C', 'vllm.version'):\n"
        "    spec = u.find_spec(name)\n"
        "    print(spec.origin if spec else f'{name} is missing')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=paths.ROOT, capture_output=True, text=True, check=True
    )
    home = str(installed.locate_file("vllm"))
    origins = [line for line in done.stdout.splitlines() if line.startswith("/")]
    assert len(origins) == 4 and all(line.startswith(home) for line in origins), done.stdout


def test_pip_check_is_clean(installed: importlib.metadata.Distribution) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
