"""The pin: which upstream release is built on, read from ``upstream.toml``."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from build_support.errors import BuildError

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Artefact:
    """One file of a release on the package index.

    Attributes:
        project: the project's name on the index.
        file: the file's name, which is also its name in the cache.
        sha256: hexadecimal digest that the file must have.
        size: length in bytes.
    """

    project: str
    file: str
    sha256: str
    size: int

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256) or self.size <= 0 or "/" in self.file:
            raise ValueError(f"impossible name, sha256 or size of {self.file}")


@dataclass(frozen=True)
class Pin:
    """What ``upstream.toml`` says.

    Attributes:
        version: the upstream release.
        label: PEP 440 local label of the fork, for example ``diffusion.1``.
        source: the sdist, which gives the Python tree on every device.
        objects: device -> the wheel that gives the compiled objects.
        requirements: device -> run-time requirements.
        dropped: device -> names that upstream requires there and the fork does not.
        extras: extra -> requirements.
        build_requirements: what an isolated build environment needs.
    """

    version: str
    label: str
    source: Artefact
    objects: dict[str, Artefact]
    requirements: dict[str, tuple[str, ...]]
    dropped: dict[str, tuple[str, ...]]
    extras: dict[str, tuple[str, ...]]
    build_requirements: tuple[str, ...]

    def fork_version(self, device: str) -> str:
        """Return the wheel's version; upstream picks its CPU platform by the ``cpu`` in it."""
        return f"{self.version}+{self.label}" + (".cpu" if device == "cpu" else "")

    def artefacts(self, device: str) -> tuple[Artefact, ...]:
        """Return the files that a build for the device is made from."""
        return self.source, self.objects[device]


def load_pin(root: Path) -> Pin:
    """Read ``upstream.toml`` in ``root``.

    Raises:
        BuildError: the file is missing or incomplete.
    """
    path = root / "upstream.toml"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        needs = data["requirements"]
        return Pin(
            version=data["upstream"]["version"],
            label=data["upstream"]["label"],
            source=Artefact(**data["artefacts"]["source"]),
            objects={device: Artefact(**data["artefacts"][device]) for device in DEVICES},
            requirements={device: (*needs["common"], *needs[device]["add"]) for device in DEVICES},
            dropped={device: tuple(needs[device]["dropped"]) for device in DEVICES},
            extras={name: tuple(items) for name, items in data["extras"].items()},
            build_requirements=tuple(needs["build"]),
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BuildError(
            f"upstream.toml in {root} cannot be read ({error!r}); restore it from the repository."
        ) from error
