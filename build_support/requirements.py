"""Prints requirements for pip: ``python -m build_support.requirements build`` (or an extra).

The Makefile installs an extra's requirements into an environment that has the wheel already.
"""

from __future__ import annotations

import sys

from build_support.errors import BuildError
from build_support.paths import ROOT
from build_support.pin import load_pin


def requirements(name: str) -> tuple[str, ...]:
    """Return the requirements of the build (``build``) or of an extra.

    Raises:
        BuildError: there is no such extra.
    """
    pin = load_pin(ROOT)
    known = {"build": pin.build_requirements, **pin.extras}
    if name not in known:
        raise BuildError(f"{name!r} is none of {', '.join(known)}; name one of these.")
    return known[name]


if __name__ == "__main__":
    try:
        print("\n".join(requirements(" ".join(sys.argv[1:]))))
    except BuildError as error:
        sys.exit(f"error: {error}")
