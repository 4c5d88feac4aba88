# SPDX-License-Identifier: Apache-2.0
"""Per-request parameters of diffusion decoding, and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm.v1.diffusion.families import BIDIRECTIONAL, END_OF_TURN
from vllm.v1.diffusion.policies.registry import check_importable
from vllm.v1.diffusion.request.fields import (
    PREFIX,
    Flag,
    Integers,
    Name,
    Number,
    ParameterError,
    Text,
    naming,
    parameter,
    parameters,
)

if TYPE_CHECKING:
    from collections.abc import Collection

    from vllm.v1.diffusion.config import MaskedDiffusionConfig

_MOST_STEPS = 32768
"""More than any block has positions; a step's number must fit beside a position's in 64 bits."""


@dataclass(frozen=True, kw_only=True)
class DiffusionParams:
    """How one request is denoised; what is None takes the engine's default.

    ``SamplingParams(extra_args=DiffusionParams(steps=2).to_extra_args())``; over
    HTTP the same keys are members of ``vllm_xargs``. Each field's range, default and
    families stand beside it; ``docs/parameters.md`` is made from them.
    """

    algorithm: str | None = parameter(
        "The unmasking policy: which positions a step unmasks.",
        Text("the name of an unmasking policy"),
        default="`--diffusion-config`, else the family's",
    )
    steps: int | None = parameter(
        "Denoising steps a block.",
        Number(low=1, high=_MOST_STEPS, whole=True),
        default="`--diffusion-config`, else as many as the block has tokens; 1 with `confidence_threshold`",
    )
    block_length: int | None = parameter(
        "Tokens a block; a divisor of the served block length, or, with bidirectional models, up to it.",
        Number(low=1, whole=True),
        default="the served block length",
    )
    threshold: float | None = parameter(
        "Confidence from which a position is unmasked.",
        Number(low=0, high=1),
        default="`--diffusion-config`, else the family's",
    )
    factor: float | None = parameter(
        "Fast-dLLM's factor: the more positions a step unmasks, the surer each must be.",
        Number(above=0),
        default="must be given",
    )
    entropy_bound: float | None = parameter(
        "Bound on the summed entropy of the positions that a step unmasks, in nats.",
        Number(above=0),
        default="`--diffusion-config`, else the family's",
    )
    alg_temperature: float | None = parameter(
        "Positions are drawn by their score at this temperature; 0 takes the best.",
        Number(low=0),
        default="0",
    )
    eps: float | None = parameter(
        "Time at which the timetable of Dream's algorithms ends.",
        Number(above=0, high=1),
        default="0.001",
    )
    cache: str | None = parameter(
        "What is reused between the steps of a block: nothing, the keys and values before it, or those "
        "before and after it.",
        Name(("none", "prefix", "dual")),
        default="`--diffusion-config`, else `none`",
        families=BIDIRECTIONAL,
    )
    edit_threshold: float | None = parameter(
        "Probability above which an unmasked token is rewritten.",
        Number(low=0, high=1),
        default="`--diffusion-config`, else 0.9",
    )
    low_threshold: float | None = parameter(
        "Confidence above which the best position of a run of masks is unmasked.",
        Number(low=0, high=1),
        default="`--diffusion-config`, else 0.4",
    )
    max_post_steps: int | None = parameter(
        "Steps that a block may take after its last mask, to rewrite tokens.",
        Number(low=0, high=_MOST_STEPS, whole=True),
        default="`--diffusion-config`, else 16",
    )
    max_steps: int | None = parameter(
        "Most denoising steps a block; the last of them unmasks all that is left.",
        Number(low=1, high=_MOST_STEPS, whole=True),
        default="no limit",
    )
    exit_threshold: float | None = parameter(
        "Early exit: a block whose masked positions all reach this confidence is unmasked at once.",
        Number(low=0, high=1),
        default="no early exit",
    )
    eos_early_stop: bool | None = parameter(
        "Early exit: a block ends as soon as it holds an end token (or one of `stop_token_ids`) and no "
        "mask before it. What is returned stays the same.",
        Flag(),
        default="false",
    )
    confidence_eos_eot_inf: bool | None = parameter(
        "End tokens are unmasked last: their confidence is zero, and the others' is that of the softmax "
        "without them.",
        Flag(),
        default="false",
        families=END_OF_TURN,
    )
    trace: bool | None = parameter(
        "Tell for every token which denoising step of the request unmasked it, and its probability "
        "in that step: `CompletionOutput.unmask_trace`, and a choice's `diffusion.trace` in a response. "
        "A token that `edit` rewrote has the step that first unmasked its position, and the probability "
        "of the step that wrote it last.",
        Flag(),
        default="false",
    )
    stats: bool | None = parameter(
        "Tell the request's denoising steps, tokens per forward and steps of each block: a choice's "
        "`diffusion` in a response, `CompletionOutput.spec_decode_metrics.per_step_accepted` in Python.",
        Flag(),
        default="false",
    )

    infill: str | None = parameter(
        "A template, which is the whole answer: text in which `<|hole:16|>` is a hole of 16 tokens to be "
        "written. Every piece of text between holes is tokenised alone and kept as it is.",
        Text("a text with holes"),
        default="none",
    )
    seed_canvas: Sequence[int] | None = parameter(
        "A template in token ids, of any length; holes hold the mask token.",
        Integers("token ids", least=1),
        default="none",
    )
    pinned: Sequence[int] | None = parameter(
        "The positions of `diffusion_seed_canvas` that are kept. All others are holes, whatever id is there.",
        Integers("positions in diffusion_seed_canvas"),
        default="all that do not hold the mask token",
    )

    def to_extra_args(self) -> dict[str, Any]:
        """The parameters that are set, as ``SamplingParams.extra_args``."""
        values = {p.key: getattr(self, p.name) for p in parameters(self)}
        return {key: value for key, value in values.items() if value is not None}

    @classmethod
    def from_extra_args(cls, extra_args: dict[str, Any] | None) -> DiffusionParams:
        """Reads ``SamplingParams.extra_args``.

        Keys without the prefix are a plug-in's; :func:`check_extra_args` knows them.

        Raises:
            ParameterError: A key with the prefix is unknown.
        """
        known = {p.key: p.name for p in parameters(cls)}
        values = {}
        for key, value in (extra_args or {}).items():
            if key in known:
                values[known[key]] = value
            elif str(key).startswith(PREFIX):
                raise _without_effect(key, value)
        return cls(**values)


def check_extra_args(
    extra_args: dict[str, Any] | None, own: Collection[str], config: MaskedDiffusionConfig
) -> None:
    """Refuses at admission keys that nobody reads, and policies that must not be imported.

    Args:
        extra_args: A request's ``SamplingParams.extra_args``.
        own: Keys that the generation loop reads beside those of ``DiffusionParams``.
        config: The engine's resolved configuration.

    Raises:
        ParameterError: Names the first such key.
    """
    for key, value in (extra_args or {}).items():
        if not str(key).startswith(PREFIX) and key not in own:
            raise _without_effect(key, value, own)
    algorithm = (extra_args or {}).get(PREFIX + "algorithm")
    if isinstance(algorithm, str):
        with naming("algorithm", algorithm):
            check_importable(algorithm, config.algorithm or "")


def _without_effect(key: str, value: Any, own: Collection[str] = ()) -> ParameterError:
    known = ", ".join([*sorted(own), *(p.key for p in parameters(DiffusionParams))])
    return ParameterError(f"{key} has no effect on this model. Known: {known}.", parameter=key, value=value)
