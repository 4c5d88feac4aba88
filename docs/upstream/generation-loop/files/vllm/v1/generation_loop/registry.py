# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""Finds the generation loop that a configuration names."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from vllm.v1.generation_loop.interface import GENERATION_LOOP_API, GenerationLoop

if TYPE_CHECKING:
    from vllm.config import VllmConfig

AUTOREGRESSIVE = "autoregressive"
ENTRY_POINT_GROUP = "vllm.generation_loops"

_BUILT_IN = {AUTOREGRESSIVE: "vllm.v1.generation_loop.interface.GenerationLoop"}
_BY_ARCHITECTURE: dict[str, str] = {}
"""Architectures of this repository that need a loop of their own -> its name."""


def known_generation_loops() -> list[str]:
    """The names of the built-in loops and of those that packages register."""
    return sorted({*_BUILT_IN, *(entry.name for entry in _entry_points())})


def configure_generation_loop(vllm_config: VllmConfig) -> None:
    """Resolves ``vllm_config.generation_loop`` and lets the loop configure.

    Called by ``VllmConfig`` before it validates itself.

    Raises:
        ValueError: The name is unknown, the loop is for another version of the
            interface, or it refuses the configuration.
    """
    model_config = vllm_config.model_config
    if model_config is None:
        return
    if vllm_config.generation_loop is None:
        named = (_BY_ARCHITECTURE.get(name) for name in model_config.architectures)
        vllm_config.generation_loop = next(filter(None, named), AUTOREGRESSIVE)
    loop = get_generation_loop(vllm_config)
    loop.configure(vllm_config)
    scheduler_config = vllm_config.scheduler_config
    if scheduler_config.scheduler_cls is None:
        scheduler_config.scheduler_cls = loop.scheduler_cls(vllm_config)


def get_generation_loop(vllm_config: VllmConfig) -> GenerationLoop:
    """This process's loop object for a configuration; see above for what it raises."""
    return _make(vllm_config.generation_loop or AUTOREGRESSIVE)


@cache
def _make(name: str) -> GenerationLoop:
    cls = _load(name)
    version = getattr(cls, "api_version", None)
    if version != GENERATION_LOOP_API:
        raise ValueError(
            f"generation_loop={name!r} is written for version {version} of the "
            f"interface; this engine has version {GENERATION_LOOP_API}."
        )
    loop = cls()
    if not isinstance(loop, GenerationLoop):
        raise ValueError(f"generation_loop={name!r} is not a GenerationLoop: {cls!r}")
    if type(loop) is GenerationLoop:
        return loop  # Nothing to guard, nothing in between.

    from vllm.v1.generation_loop.guard import GuardedLoop

    return GuardedLoop(name, loop)


def _load(name: str) -> type[GenerationLoop]:
    from vllm.utils.import_utils import resolve_obj_by_qualname

    for entry_point in _entry_points():
        if entry_point.name == name and name not in _BUILT_IN:
            return entry_point.load()
    qualified = _BUILT_IN.get(name, name)
    if "." not in qualified:
        raise ValueError(
            f"Unknown generation_loop={name!r}. Known: "
            f"{', '.join(known_generation_loops())}; or a dotted path to a class."
        )
    try:
        return resolve_obj_by_qualname(qualified)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"generation_loop={name!r} cannot be imported: {error}") from error


def _entry_points() -> Iterable[EntryPoint]:
    return entry_points(group=ENTRY_POINT_GROUP)
