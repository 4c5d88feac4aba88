#!/usr/bin/env python3
"""Checks licences: our files say theirs, and what the wheel requires may be used beside them.

tools/check_licences.py             in an environment where the fork is installed
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from build_support import paths
from build_support.overlay import overlay_files

SPDX = "# SPDX-License-Identifier: Apache-2.0"
PERMISSIVE = re.compile(
    r"apache|\bmit\b|\bbsd\b|\b[023]-clause|isc\b|python software foundation|\bpsf|zlib|unlicense|"
    r"\bcc0|mozilla public license 2|mpl-2|hpnd|boost|0bsd|openssl|cnri|unicode|\bmit-cmu",
    re.IGNORECASE,
)
COPYLEFT = re.compile(r"\b(a?gpl|gnu (affero )?general)", re.IGNORECASE)
# Distributions whose metadata says nothing that can be read, or that are not permissive: why they are
# all right. None is in the wheel; pip installs them beside it.
KNOWN = {
    "intel-openmp": "Intel Simplified Software License; a run-time library of the CPU build",
    "intel-cmplr-lib-ur": "Intel's licence for its run-time libraries; required by intel-openmp",
    "oss-harmony": "Apache-2.0, by the LICENSE file in its metadata",
}
VENDORS = ("nvidia-", "cuda-")  # the CUDA run-time libraries that torch requires, under NVIDIA's own licence


def source_faults() -> list[str]:
    """Return which shipped files do not say their licence, and what is wrong with the metadata."""
    faults = []
    for name in overlay_files(paths.ROOT):
        if name.endswith(".py"):
            head = (paths.ROOT / name).read_text("utf-8").splitlines()[:1]
            if head != [SPDX]:
                faults.append(f"{name}: the first line is not '{SPDX}'")
    project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    if project["license"] != "Apache-2.0":
        faults.append(f"pyproject.toml: the licence is {project['license']}")
    if "Apache License" not in (paths.ROOT / "LICENSE").read_text("utf-8")[:200]:
        faults.append("LICENSE: not the Apache License")
    if "vLLM" not in (paths.ROOT / "NOTICE").read_text("utf-8"):
        faults.append("NOTICE: upstream is not named")
    return faults


def stated_licence(metadata: importlib.metadata.PackageMetadata) -> str:
    """Return what a distribution says of its licence, in one string."""
    classifiers = [c for c in metadata.get_all("Classifier") or [] if c.startswith("License ::")]
    stated = [text[:200] for key in ("License-Expression", "License") for text in metadata.get_all(key) or []]
    return " | ".join([*stated, *classifiers])


def required(root: str) -> set[str]:
    """Return the installed distributions that ``root`` requires, however indirectly, without extras."""
    found: set[str] = set()
    open_names = [root]
    while open_names:
        name = re.sub(r"[-_.]+", "-", open_names.pop()).lower()
        if name in found:
            continue
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        found.add(name)
        for requirement in requires:
            if "extra ==" not in requirement:
                open_names.append(re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0])
    return found - {re.sub(r"[-_.]+", "-", root).lower()}


def requirement_faults() -> tuple[list[str], int]:
    """Return what is wrong with the licences of what the wheel requires, and how many were looked at."""
    names = required("vllm")
    faults = []
    for name in sorted(name for name in names - set(KNOWN) if not name.startswith(VENDORS)):
        said = stated_licence(importlib.metadata.metadata(name))
        if not PERMISSIVE.search(said):
            faults.append(f"{name}: licence {said or 'not stated'!r}; look it up and add it to KNOWN")
        elif COPYLEFT.search(said) and not re.search(r"\bor\b|exception", said, re.IGNORECASE):
            faults.append(f"{name}: licence {said!r} is not permissive")
    return faults, len(names)


def main() -> int:
    """Check everything."""
    faults, count = requirement_faults()
    faults = source_faults() + faults
    if not count:
        faults.append("the fork is not installed in this environment; run make install first")
    if faults:
        print("error: licences:\n  " + "\n  ".join(faults), file=sys.stderr)
        return 1
    print(f"licences: our shipped files say theirs; {count} required distributions are permissive or known")
    return 0


if __name__ == "__main__":
    sys.exit(main())
