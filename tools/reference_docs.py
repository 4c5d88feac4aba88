#!/usr/bin/env python3
"""Writes the pages of ``docs/`` that are made from the code: run it where this vLLM is installed.

``reference_docs.py`` writes them; ``reference_docs.py --check`` fails if one is not current.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools import compatibility

_DOCS = Path(__file__).resolve().parent.parent / "docs"
_MADE = "<!-- Made by tools/reference_docs.py (make docs) from {source}. Do not edit. -->"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [[cell.replace("|", r"\|") for cell in row] for row in (header, *rows)]
    lines.insert(1, ["---"] * len(header))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parameters_page() -> str:
    """Return docs/parameters.md: what a request may say about its own denoising."""
    from vllm.v1.diffusion.families import FAMILIES
    from vllm.v1.diffusion.policies import built_in_policies, get_policy
    from vllm.v1.diffusion.policies.parameter import PREFIX
    from vllm.v1.diffusion.request.params import parameters

    policies = {name: get_policy(name) for name in built_in_policies()}
    fields = []
    for key, one in parameters().items():
        readers = [f"`{name}`" for name, policy in policies.items() if key in policy.parameters]
        fields.append(
            [
                f"`{PREFIX}{key}`",
                one.allowed,
                one.default_text,
                ", ".join(readers) or "all",
                ", ".join(one.families) or "all",
                one.meaning,
            ]
        )
    aliases = [
        [f"`{PREFIX}{alias}`", f"`{PREFIX}{key}`"]
        for key, one in parameters().items()
        for alias in one.aliases
    ]
    algorithms = [
        [
            f"`{name}`",
            (inspect.getdoc(type(policy)) or "").splitlines()[0],
            ", ".join(f"`diffusion_{p}`" for p in sorted(policy.parameters)) or "nothing",
        ]
        for name, policy in policies.items()
    ]
    families = [
        [
            f.name,
            f"`{f.algorithm}`",
            str(f.block_length or "the response"),
            f"{f.threshold:g}",
            f"{f.entropy_bound:g}",
        ]
        for f in FAMILIES
    ]
    return "\n\n".join(
        [
            "# Diffusion parameters of a request",
            _MADE.format(source="DiffusionParams, the policies and the families"),
            "In Python `DiffusionParams(steps=4).sampling_params(temperature=0)` makes the parameters\n"
            "of a request. Over HTTP the keys are members of `vllm_xargs`. A key that is unknown, out\n"
            "of range or has no effect with the request's algorithm or the served model is refused\n"
            "with its name, status 400. `DiffusionParams` refuses what is out of range when it is made.",
            table(["key", "values", "default", "algorithms", "families", "meaning"], fields),
            "## Aliases",
            "Names of other repositories' flags. They are accepted wherever the parameter is: in a\n"
            "request, in `DiffusionParams`, in `--diffusion-config` and as an option of `vllm diffuse`.\n"
            "`diffusion_seed_canvas` and `diffusion_pinned` are upstream's names for a template in ids.\n"
            "In `--diffusion-config`, `canvas_length` is upstream's name for `block_length`.",
            table(["alias", "parameter"], aliases),
            "## Algorithms",
            "Packages register more of them under the entry-point group `vllm.unmasking_policies`.",
            table(["`diffusion_algorithm`", "unmasks in a step", "reads"], algorithms),
            "## Families' defaults",
            "What neither a request nor `--diffusion-config` nor the checkpoint's configuration says.",
            table(["family", "algorithm", "block length", "threshold", "entropy bound"], families),
        ]
    )


def compatibility_page() -> str:
    """Return docs/compatibility.md: every field of upstream's requests and its verdict."""
    made = _MADE.format(source="upstream's requests, by trying them (tools/compatibility.py)")
    return "\n\n".join(["# Compatibility", made, compatibility.page()])


PAGES: dict[str, Callable[[], str]] = {
    "compatibility.md": compatibility_page,
    "parameters.md": parameters_page,
}


def main() -> int:
    """Write or check the pages; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the pages are current")
    check = parser.parse_args().check
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    stale = []
    for name, page in PAGES.items():
        path, text = _DOCS / name, page() + "\n"
        if path.is_file() and path.read_text() == text:
            continue
        stale.append(name)
        if not check:
            path.write_text(text)
    for name in stale:
        print(f"error: docs/{name} is not current; run make docs." if check else f"wrote docs/{name}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
