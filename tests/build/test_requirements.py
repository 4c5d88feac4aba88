"""``upstream.toml`` against what the upstream wheels themselves declare, where they are at hand."""

from __future__ import annotations

import email
import zipfile
from email.message import Message

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from build_support import paths
from build_support.metadata import entry_points, project_table
from build_support.pin import DEVICES, Pin, load_pin


@pytest.fixture(scope="module")
def pin() -> Pin:
    return load_pin(paths.ROOT)


def upstream_wheel(pin: Pin, device: str) -> zipfile.ZipFile:
    """Open the pinned wheel, or skip: nothing is downloaded for a test."""
    for folder in (paths.upstream_dir(), paths.cache_dir()):
        if folder is not None and (folder / pin.objects[device].file).is_file():
            return zipfile.ZipFile(folder / pin.objects[device].file)
    pytest.skip(f"{pin.objects[device].file} is not on this machine")


def dist_info_file(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = (n for n in wheel.namelist() if n.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


def metadata(wheel: zipfile.ZipFile) -> Message:
    return email.message_from_string(dist_info_file(wheel, "METADATA"))


def canonical(requirements: list[str]) -> set[str]:
    return {str(Requirement(requirement)) for requirement in requirements}


@pytest.mark.parametrize("device", DEVICES)
def test_requirements_are_upstreams(pin: Pin, device: str) -> None:
    declared = [
        requirement
        for requirement in metadata(upstream_wheel(pin, device)).get_all("Requires-Dist") or []
        if "extra ==" not in requirement
        and canonicalize_name(Requirement(requirement).name) not in pin.dropped[device]
    ]
    ours = canonical(list(pin.requirements[device]))
    theirs = canonical(declared)
    if device == "cpu":  # no local label: whichever build of the release the index has
        theirs = {r for r in theirs if Requirement(r).name != "torch"} | {"torch==2.13.0"}
    assert ours == theirs


@pytest.mark.parametrize("device", DEVICES)
def test_upstreams_extras_are_kept(pin: Pin, device: str) -> None:
    declared = metadata(upstream_wheel(pin, device))
    for extra in declared.get_all("Provides-Extra") or []:
        theirs = {
            requirement.split(";")[0].strip()
            for requirement in declared.get_all("Requires-Dist") or []
            if f'extra == "{extra}"' in requirement
        }
        assert canonical(list(pin.extras[extra])) == canonical(list(theirs)), extra


@pytest.mark.parametrize("device", DEVICES)
def test_entry_points_are_upstreams(pin: Pin, device: str) -> None:
    theirs = dist_info_file(upstream_wheel(pin, device), "entry_points.txt")
    assert [line for line in entry_points(paths.ROOT).splitlines() if line] == [
        line for line in theirs.splitlines() if line
    ]


def test_a_cpu_install_requires_no_cuda_build(pin: Pin) -> None:
    names = {canonicalize_name(Requirement(r).name) for r in pin.requirements["cpu"]}
    assert not names & {"torchvision", "torchaudio", "torchcodec", "triton"}
    assert not any(name.startswith(("nvidia", "cuda", "flashinfer")) for name in names)


def test_torch_is_asked_for_by_its_release_alone(pin: Pin) -> None:
    asked = [*pin.build_requirements, *pin.requirements["cpu"], *pin.requirements["cuda"]]
    assert {r for r in asked if Requirement(r).name == "torch"} == {"torch==2.13.0"}


def test_every_requirement_and_the_version_parse(pin: Pin) -> None:
    for requirements in (*pin.requirements.values(), *pin.extras.values()):
        for requirement in requirements:
            Requirement(requirement)
    assert pin.fork_version("cpu") == f"{pin.version}+{pin.label}.cpu"
    assert pin.fork_version("cuda") == f"{pin.version}+{pin.label}"
    assert {"test", "dev"} <= set(pin.extras)
    assert project_table(paths.ROOT)["name"] == "vllm"
