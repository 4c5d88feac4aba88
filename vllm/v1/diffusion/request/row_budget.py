# SPDX-License-Identifier: Apache-2.0
"""How many rows the steps of a block compute where a request asks for ``rows="elastic"``.

The first step computes the whole block. A later one computes what the step before it unmasked, whose keys
and values were those of masks, and the masked positions that are likely to be unmasked now. All others keep
the keys and values that they have. The numbers follow from the algorithm's timetable alone, or are the same
in each step, so the scheduler knows them before the worker has made the step. Which positions they are, the
worker decides (``canvas/row_budget.py``).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from vllm.v1.diffusion.families import ELASTIC_ROWS
from vllm.v1.diffusion.policies.base import scheduled_count
from vllm.v1.diffusion.request.decoding import Decoding
from vllm.v1.diffusion.request.fields import ParameterError, require

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams
    from vllm.v1.diffusion.config import MaskedDiffusionConfig
    from vllm.v1.diffusion.request.params import DiffusionParams

SCHEDULED = ("low_confidence_static", "sequential")
"""Algorithms that unmask a known number of positions in each step, the first ones of a known order."""

DYNAMIC = ("low_confidence_dynamic", "threshold")
"""Those whose steps unmask what the model is sure of: each step but the first has as many rows."""

CANDIDATES = 12
"""Masked positions that a step computes, where nobody says."""


class StepRows(NamedTuple):
    """What a step computes of a block.

    Attributes:
        rows: Positions.
        candidates: The masked ones among them, which have rows of logits.
    """

    rows: int
    candidates: int


@lru_cache(maxsize=4096)
def timetable(
    masked: int, steps: int, block_length: int, candidates: int, max_steps: int | None = None
) -> tuple[StepRows, ...]:
    """What each step of a block computes, the first step first.

    Args:
        masked: Masks that the block begins with.
        steps: Steps asked for per block.
        block_length: Tokens per block.
        candidates: Masked positions that a step computes, if it unmasks no more.
        max_steps: Most steps, the last of which unmasks all that is left; None for no limit.
    """
    found: list[StepRows] = []
    known, before = block_length - masked, 0
    while masked > 0:
        step = len(found)
        last = max_steps is not None and step + 1 >= max_steps
        count = masked if last else min(masked, scheduled_count(step, steps, block_length))
        if step == 0:
            found.append(StepRows(block_length, block_length))
        else:
            among = min(masked, max(count, candidates))
            # No fewer than the known tokens that the block began with: the runner takes a window
            # that ends before them for a part of a prompt.
            found.append(StepRows(min(max(before + among, known), block_length), among))
        masked, before = masked - count, count
    return tuple(found)


def rows_per_token(steps: int, block_length: int, candidates: int | None) -> float:
    """Rows computed per token of a block of masks, the one that commits it included.

    Args:
        steps: Denoising steps of a block.
        block_length: Tokens per block.
        candidates: As of :func:`timetable`; None where every step computes the whole block.
    """
    if candidates is None:
        return float(min(steps, block_length) + 1)
    planned = timetable(block_length, steps, block_length, candidates)
    return 1 + sum(step.rows for step in planned) / block_length


def step_rows(decoding: Decoding, step: int, masked: int, block_length: int) -> StepRows:
    """What a step of a block computes of it.

    Args:
        decoding: How the request is denoised; it has ``row_candidates``.
        step: Steps made on the block before, of those that its timetable has.
        masked: Masks that the block began with.
        block_length: Tokens of the block.
    """
    assert decoding.row_candidates is not None
    steps = decoding.steps_of(block_length)
    if decoding.algorithm in DYNAMIC:
        if decoding.max_steps is not None and step + 1 >= decoding.max_steps:
            return StepRows(block_length, block_length)
        among = max(decoding.row_candidates, least_candidates(decoding, block_length) or 0)
        # Half as many for what was unmasked. All have rows of logits: how many are masked, the device knows.
        rows = min(max(among + -(-among // 2), block_length - masked), block_length)
        return StepRows(rows, rows)
    planned = timetable(masked, steps, block_length, decoding.row_candidates, decoding.max_steps)
    return planned[step] if step < len(planned) else StepRows(block_length, block_length)


def least_candidates(decoding: Decoding, block_length: int) -> int | None:
    """Masked positions that come before what was unmasked; None for all candidates.

    So a step has some to unmask.

    Args:
        decoding: How the request is denoised.
        block_length: Tokens of the block.
    """
    if decoding.algorithm not in DYNAMIC:
        return None
    return scheduled_count(0, decoding.steps_of(block_length), block_length)


def row_candidates(given: DiffusionParams, config: MaskedDiffusionConfig) -> int | None:
    """Masked positions that a step computes; None where it computes the whole block.

    Raises:
        ParameterError: Names ``diffusion_rows`` or ``diffusion_row_candidates``.
    """
    rows = given.rows or config.rows or "exact"
    if rows == "exact":
        name, value = "row_candidates", given.row_candidates
        require(value is None, name, value, "has no effect with diffusion_rows='exact'")
        return None
    return given.row_candidates or config.row_candidates or CANDIDATES


def check_elastic_rows(
    given: DiffusionParams, params: SamplingParams | None, decoding: Decoding, config: MaskedDiffusionConfig
) -> None:
    """Refuses what elastic rows cannot be combined with.

    Args:
        given: The request's parameters.
        params: Its sampling parameters; None for none.
        decoding: What they amount to.
        config: The engine's resolved configuration.

    Raises:
        ParameterError: Names the parameter.
    """
    if decoding.row_candidates is None:
        return
    # Those of block-causal models whose blocks begin at multiples of their length.
    fits = config.cache is None and config.mode is None and config.mask_token_id is not None
    fits = fits and config.pooled_block_length is None
    require(
        fits,
        "rows",
        "elastic",
        f"is not for this model, but for block-causal ones: {', '.join(ELASTIC_ROWS)}, unless the tokens of "
        "a block choose their experts together",
    )
    require(
        decoding.algorithm in (*SCHEDULED, *DYNAMIC),
        "rows",
        "elastic",
        f"is not supported with diffusion_algorithm={decoding.algorithm!r}, but with "
        f"{', '.join((*SCHEDULED, *DYNAMIC))}; ask for diffusion_rows='exact'",
    )
    asked = {
        "diffusion_infill (diffusion_infill_ids, diffusion_seed_canvas)": decoding.template is not None,
        "diffusion_exit_threshold": decoding.exit_threshold is not None,
        "diffusion_eos_early_stop": bool(decoding.stop_ids),
        "structured_outputs (response_format, tool_choice)": decoding.constrained,
        "bad_words": bool(params and params.bad_words),
    }
    for name, present in asked.items():
        if present:
            raise ParameterError(
                f"diffusion_rows='elastic' is not supported with {name}: a step computes a part of its block "
                "only. Ask for diffusion_rows='exact'.",
                parameter="diffusion_rows",
                value="elastic",
            )
