# SPDX-License-Identifier: Apache-2.0
"""Finds the generation loop that a configuration names."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoints, entry_points
from typing import TYPE_CHECKING, cast

from vllm.v1.generation_loop.errors import describe
from vllm.v1.generation_loop.interface import GENERATION_LOOP_API, GenerationLoop

if TYPE_CHECKING:
    from vllm.config import VllmConfig

AUTOREGRESSIVE = "autoregressive"
ENTRY_POINT_GROUP = "vllm.generation_loops"

_ADVANCING = ("step", "scheduler_cls", "model_state_cls")
"""Methods of which a loop overrides one at least if requests do not advance token by token."""

_BUILT_IN = {
    AUTOREGRESSIVE: "vllm.v1.generation_loop.interface:GenerationLoop",
    "block_diffusion": "vllm.v1.diffusion.loops.block:BlockDiffusionLoop",
    "elastic_diffusion": "vllm.v1.diffusion.loops.elastic:ElasticDiffusionLoop",
    "exact_block_diffusion": "vllm.v1.diffusion.loops.answer:ExactBlockDiffusionLoop",
    "full_diffusion": "vllm.v1.diffusion.loops.full:FullDiffusionLoop",
    "multi_block_diffusion": "vllm.v1.diffusion.loops.multi_block:MultiBlockDiffusionLoop",
    "prompt_block_diffusion": "vllm.v1.diffusion.loops.answer:PromptBlockDiffusionLoop",
    "renoising_diffusion": "vllm.v1.diffusion.loops.renoising:RenoisingDiffusionLoop",
    "reordered_diffusion": "vllm.v1.diffusion.loops.reordered:ReorderedDiffusionLoop",
    "seeded_block_diffusion": "vllm.v1.diffusion.loops.seeded:SeededBlockDiffusionLoop",
    "shifted_block_diffusion": "vllm.v1.diffusion.loops.shifted:ShiftedBlockDiffusionLoop",
    "shifted_prompt_block_diffusion": "vllm.v1.diffusion.loops.answer:ShiftedPromptBlockDiffusionLoop",
    "verified_block_diffusion": "vllm.v1.diffusion.loops.verified:VerifiedBlockDiffusionLoop",
}


def known_generation_loops() -> list[str]:
    """The names of the built-in loops and of those that packages register."""
    return sorted({*_BUILT_IN, *(e.name for e in _entry_points())})


def configure_generation_loop(vllm_config: VllmConfig) -> None:
    """Resolves ``vllm_config.generation_loop`` and lets the loop configure.

    Where no name is given, the model's architecture decides. Called by
    ``VllmConfig`` before it validates itself.

    Raises:
        ValueError: The name is unknown, the loop is for another interface
            version, or it refuses the configuration; or there are settings of
            diffusion and nothing that reads them; or the checkpoint is not what
            its name says.
    """
    # Not at the top: upstream's configuration is imported here, and it imports this module.
    from vllm.v1.diffusion.checkpoint.checks import check_checkpoint
    from vllm.v1.diffusion.checkpoint.recognise import recognise
    from vllm.v1.diffusion.config import served_family

    model_config = vllm_config.model_config
    if model_config is None:
        return
    if vllm_config.generation_loop != AUTOREGRESSIVE:
        recognise(model_config)
    family = served_family(model_config, vllm_config.diffusion_config)
    if family is not None:
        check_checkpoint(model_config, family)
    if vllm_config.generation_loop is None:
        vllm_config.generation_loop = family.loop if family else AUTOREGRESSIVE
        if vllm_config.diffusion_config is not None and not family and not model_config.is_diffusion:
            raise ValueError(
                f"diffusion_config has no effect on {model_config.architectures}, which generates one token "
                "after the other: no family of diffusion models has that architecture."
            )
    loop = get_generation_loop(vllm_config)
    scheduler_config = vllm_config.scheduler_config
    if family and scheduler_config.scheduler_cls is None and not _advances_otherwise(loop):
        raise ValueError(
            f"generation_loop={vllm_config.generation_loop!r} cannot run {family.name} models: "
            f"they denoise blocks of masked tokens, and it would generate one token after the other. Use "
            f"{family.loop!r}, a loop derived from it, or leave generation_loop unset."
        )
    loop.configure(vllm_config)
    if scheduler_config.scheduler_cls is None:
        scheduler_config.scheduler_cls = loop.scheduler_cls(vllm_config)


def _advances_otherwise(loop: GenerationLoop) -> bool:
    """Whether a loop, guarded or not, has a way of its own to advance requests."""
    cls = type(getattr(loop, "loop", loop))
    return any(getattr(cls, method) is not getattr(GenerationLoop, method) for method in _ADVANCING)


def get_generation_loop(vllm_config: VllmConfig) -> GenerationLoop:
    """This process's loop object for a configuration.

    Raises:
        ValueError: The name is unknown or the loop is for another interface
            version.
    """
    return _make(vllm_config.generation_loop or AUTOREGRESSIVE)


@cache
def _make(name: str) -> GenerationLoop:
    cls = _load(name)
    version = getattr(cls, "api_version", None)
    if not isinstance(cls, type) or version is None:
        raise ValueError(f"generation_loop={name!r} is no GenerationLoop: {cls!r}")
    if version != GENERATION_LOOP_API:
        raise ValueError(
            f"generation_loop={name!r} is written for generation-loop interface "
            f"{version}, this engine has version {GENERATION_LOOP_API}."
        )
    try:
        loop = cls()
    except Exception as error:
        raise ValueError(describe(name, "__init__", error)) from error
    if not isinstance(loop, GenerationLoop):
        raise ValueError(f"generation_loop={name!r} is no GenerationLoop: {cls!r}")
    if type(loop) is GenerationLoop:
        return loop  # Upstream's way: nothing to guard, nothing in between.

    from vllm.v1.generation_loop.guard import GuardedLoop

    return GuardedLoop(name, loop)


def _load(name: str) -> type[GenerationLoop]:
    from vllm.utils.import_utils import resolve_obj_by_qualname

    registered = [e for e in _entry_points() if e.name == name]
    places = sorted({e.value for e in registered} | {path for n, path in _BUILT_IN.items() if n == name})
    if len(places) > 1:
        raise ValueError(
            f"generation_loop={name!r} is registered more than once: {', '.join(places)}. Name the class "
            "by its dotted path, and uninstall or rename the other one."
        )
    if name in _BUILT_IN:
        return cast(
            type[GenerationLoop],
            resolve_obj_by_qualname(_BUILT_IN[name].replace(":", ".")),
        )
    for entry_point in registered:
        try:
            return cast(type[GenerationLoop], entry_point.load())
        except Exception as error:
            raise ValueError(
                f"generation_loop={name!r} ({entry_point.value}) cannot be imported: {error}"
            ) from error
    if "." in name:
        try:
            return cast(type[GenerationLoop], resolve_obj_by_qualname(name.replace(":", ".")))
        except Exception as error:
            raise ValueError(f"generation_loop={name!r} cannot be imported: {error}") from error
    raise ValueError(
        f"Unknown generation_loop={name!r}. Known: "
        f"{', '.join(known_generation_loops())}; or a dotted path to a class."
    )


def _entry_points() -> EntryPoints:
    return entry_points(group=ENTRY_POINT_GROUP)
