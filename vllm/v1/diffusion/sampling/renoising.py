# SPDX-License-Identifier: Apache-2.0
"""A denoising step of canvases that hold random tokens, not masks (DiffusionGemma's decoding).

Facts are transformers' (``models/diffusion_gemma``): the linear temperature schedule, the entropy-bound
sampler, the stable-and-confident stop.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch

from vllm.v1.diffusion.canvas.renoising import RenoisingStates, UniformNoise
from vllm.v1.diffusion.canvas.step import DenoisingStep
from vllm.v1.diffusion.kernels.noise import draw_offset
from vllm.v1.diffusion.kernels.row_stats import RowStats, row_stats
from vllm.v1.diffusion.sampling.early_exits import EarlyExits
from vllm.v1.diffusion.sampling.step_logits import StepLogits, in_parts


class SelfConditioned(Protocol):
    """A network that takes along what the step before predicted."""

    soft_cap: float | None
    """What its logits are to be soft-capped at; None for nothing."""

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of known tokens, ``[rows, hidden]``."""

    def canvas_inputs(self, embeddings: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        """Inputs of canvas rows, ``[rows, hidden]``, of their embeddings and what was predicted."""

    def expected_embeddings(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Expected embeddings, ``[rows, hidden]``, of probabilities ``[rows, V]``."""


class Choice(NamedTuple):
    """What a step makes of its canvases.

    Attributes:
        current: The most probable tokens, with what is given in its place, int64 ``[R, W]``.
        following: The canvas of the step after, likewise.
        free: Positions that are written, bool ``[R, W]``.
        accepted: Positions of ``following`` that hold a drawn token, bool ``[R, W]``.
        done: Blocks that this step ends, bool ``[R]``.
    """

    current: torch.Tensor
    following: torch.Tensor
    free: torch.Tensor
    accepted: torch.Tensor
    done: torch.Tensor


def within_bound(entropy: torch.Tensor, free: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
    """Positions kept by rising entropy, while the sum of those before stays within a bound.

    One at least is kept, of canvases that have a free position.

    Args:
        entropy: In nats, float32 ``[R, W]``.
        free: Positions that may be kept, bool ``[R, W]``.
        bound: float32 ``[R]``.

    Returns:
        bool ``[R, W]``.
    """
    ranked, order = entropy.double().masked_fill(~free, torch.inf).sort(dim=1, stable=True)
    before = ranked.masked_fill(ranked == torch.inf, 0.0).cumsum(dim=1)
    before = torch.nn.functional.pad(before[:, :-1], (1, 0))
    kept = torch.zeros_like(free).scatter_(1, order, before <= bound[:, None])
    return kept & free


class Renoising:
    """Statistics and unmasking of the sampler, for canvases that hold random tokens.

    To all that reads statistics a row's token is the most probable one: it is what would be written.
    Only the canvas of the step after holds drawn tokens.
    """

    def __init__(self, sampler: Any, noise: UniformNoise, states: RenoisingStates, network: Any) -> None:
        """Makes it.

        Args:
            sampler: The ``DenoisingSampler``, its parts made.
            noise: What stands at open positions.
            states: What is remembered beside the canvases.
            network: The model, a :class:`SelfConditioned`.
        """
        self.network = cast(SelfConditioned, network)
        self._sampling_states = sampler.sampling_states
        self._canvases = sampler.canvases
        self._bad_words = sampler.logits.bad_words
        self._exits = EarlyExits(sampler.canvases)
        self._noise = noise
        self._states = states
        self._drawn = torch.empty(0, dtype=torch.int64)

    def schedule(self, step: DenoisingStep) -> torch.Tensor:
        """The step's temperature of each request, float32 ``[R]``: a block's first is ``t_max``."""
        canvases, slots = self._canvases, step.slots
        steps = canvases.steps.gpu[slots].float()
        left = (steps - canvases.step[slots]).clamp(min=1.0)
        highest, lowest = self._values(step, "t_max"), self._values(step, "t_min")
        temperature: torch.Tensor = lowest + (highest - lowest) * (left / steps)
        return temperature

    def statistics(self, logits: StepLogits, step: DenoisingStep) -> RowStats:
        """Statistics of all rows, ``[N]``, at the schedule's temperature; keeps what is drawn and predicted.

        Args:
            logits: The step's logits.
            step: The step.
        """
        stats, best = self.row_statistics(logits, step)
        self._drawn = stats.sample
        return stats._replace(sample=best, sample_prob=stats.top1)

    def row_statistics(self, logits: StepLogits, step: DenoisingStep) -> tuple[RowStats, torch.Tensor]:
        """The same, a row's token being the drawn one, and each row's most probable token, int64 ``[N]``.

        A request's own temperature divides its logits before the schedule does; 0 takes the most
        probable token for the drawn one. Float32 logits exist for a part of the rows at a time.
        """
        canvases, states = self._canvases, self._sampling_states
        slot, column = step.row_slot, step.row_column
        own = states.temperature.gpu[slot]
        scale = torch.repeat_interleave(self.schedule(step), step.row_start.diff(), output_size=len(slot))
        scale = scale * torch.where(own == 0, 1.0, own)
        temperature = torch.where(own == 0, 0.0, scale)
        offset = draw_offset(canvases.start[slot] + column, canvases.step[slot])
        seeds = states.seeds.gpu[slot]
        predicted = self._states.predicted
        conditions = self._states.conditions[step.slots_np][step.request_np]
        parts, best = [], []
        for rows_np in in_parts(np.arange(len(slot)), logits.raw.shape[1]):
            rows = slice(int(rows_np[0]), int(rows_np[-1]) + 1)
            values = logits.of(rows_np)
            stats = row_stats(values, temperature[rows], scale[rows], seeds[rows], offset[rows])
            parts.append(stats)
            best.append(values.argmax(dim=-1))
            if conditions[rows].any():
                # The part's logits become its probabilities: there is no second buffer of that size.
                values.div_(scale[rows, None]).sub_(stats.lse[:, None]).exp_()
                embeddings = self.network.expected_embeddings(values)
                predicted[slot[rows], column[rows]] = embeddings.to(predicted.dtype)
        if len(parts) == 1:
            return parts[0], best[0]
        return RowStats(*map(torch.cat, zip(*parts, strict=True))), torch.cat(best)

    def __call__(self, stats: RowStats, step: DenoisingStep, overlaps: bool) -> torch.Tensor:
        """Makes one step; see ``sampling.unmasking.Unmasking``, in whose place it is.

        Args:
            stats: The rows' statistics; a row's token is the most probable one.
            step: The step.
            overlaps: Whether a window may not cover its block; never so here.

        Returns:
            Which requests' blocks are done, bool ``[R]``.
        """
        assert not overlaps
        canvases, slots = self._canvases, step.slots
        before = self._bad_words.snapshot(step)
        early = [e for e in (self._exits.capped(step), self._exits.certain(stats, step)) if e is not None]
        choice = self.choose(stats, step)
        done = choice.done
        for exits in early:
            done = done | exits
        # A block that a correction opens again is closed step by step: no rule is asked again.
        done = done | (self._states.stopped[slots] & (canvases.step[slots] > 0))
        self._states.stopped[slots] = done
        canvases.step[slots] += 1
        canvases.tokens[slots] = torch.where(done[:, None], choice.current, choice.following)
        canvases.masked[slots] = choice.free & ~done[:, None]
        if before is not None:
            taken_back = self._bad_words.take_back(step, before)
            done = done & ~(taken_back & choice.free).any(dim=1)
        return done  # type: ignore[no-any-return]

    def choose(self, stats: RowStats, step: DenoisingStep) -> Choice:
        """Says what a step makes of its canvases, and notes what was most probable.

        Args:
            stats: The rows' statistics.
            step: The step.
        """
        canvases, states, slots = self._canvases, self._states, step.slots
        free, tokens, made = canvases.masked[slots], canvases.tokens[slots], canvases.step[slots]
        rows = (step.row_start[:-1, None] + canvases.columns).clamp(max=len(stats.sample) - 1)
        current = torch.where(free, stats.sample[rows], tokens)
        entropy = stats.entropy[rows]
        accepted = within_bound(entropy, free, self._values(step, "entropy_bound"))
        noise = self._noise.draw(slots, canvases.start[slots, None] + canvases.columns, made + 1)
        following = torch.where(free, torch.where(accepted, self._drawn[rows], noise), tokens)

        changed = free & ((states.best[slots] != current) | (made == 0)[:, None])
        same = torch.where(changed.any(dim=1), 0, states.same[slots] + 1)
        states.best[slots], states.same[slots] = current, same
        canvases.unmasked_at[slots] = torch.where(changed, made[:, None], canvases.unmasked_at[slots])
        canvases.confidence[slots] = torch.where(free, stats.top1[rows], canvases.confidence[slots])
        canvases.entropy[slots] = torch.where(free, entropy, canvases.entropy[slots])

        mean = entropy.masked_fill(~free, 0.0).sum(dim=1) / free.sum(dim=1).clamp(min=1)
        done = same >= self._values(step, "stability_threshold")
        done &= mean < self._values(step, "confidence_threshold")
        done |= made + 1 >= canvases.steps.gpu[slots]
        return Choice(current, following, free, accepted, done)

    def _values(self, step: DenoisingStep, name: str) -> torch.Tensor:
        """A number that the algorithm reads, float32 ``[R]``."""
        values: torch.Tensor = self._states.values[name].gpu[step.slots]
        return values
