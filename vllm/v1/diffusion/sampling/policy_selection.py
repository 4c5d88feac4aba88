# SPDX-License-Identifier: Apache-2.0
"""Asks the policies that are written in Python, and keeps what they remember.

A policy may come from any package. What it returns is checked; if it raises or returns
what it must not, its requests fail; if it chooses nothing for too long, the most confident
position is unmasked for it. So every block ends, and the engine lives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch

from vllm.logger import init_logger
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.canvas.step import DenoisingStep
from vllm.v1.diffusion.kernels.row_stats import RowStats, row_stats
from vllm.v1.diffusion.kernels.rules import Rule
from vllm.v1.diffusion.policies import CanvasView, PositionStats, UnmaskingPolicy
from vllm.v1.diffusion.policies.answers import (
    checked_boost,
    checked_redraw,
    checked_rewrite,
    checked_select,
)
from vllm.v1.diffusion.policies.base import Proposals, Redrawn
from vllm.v1.diffusion.policies.memory import MOST_MEMORY, size_of
from vllm.v1.diffusion.sampling.boost import Boost
from vllm.v1.diffusion.sampling.statistics import RowProposals, StepStatistics
from vllm.v1.diffusion.sampling.step_logits import StepLogits
from vllm.v1.generation_loop.plug_ins import is_plug_in
from vllm.v1.generation_loop.ranks import gathered

logger = init_logger(__name__)


class Speculation(Protocol):
    """What keeps drafts until they have been verified."""

    def __call__(
        self, policy: UnmaskingPolicy, view: CanvasView, answers: SpeculationRows, step: DenoisingStep
    ) -> None:
        """Verifies what waits of some requests, and keeps what is to be verified.

        Args:
            policy: Their policy.
            view: Their canvases.
            answers: Their rows.
            step: The step.
        """

    def remove(self, slot: int) -> None:
        """Gives a request's slot back."""

    def state(self, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rounds made on blocks, positions that the step has verified, and which drafts wait.

        Args:
            slots: int64 ``[n]``.
        """


class SpeculationRows(NamedTuple):
    """Rows of the n requests of a step that share a policy which speculates.

    Attributes:
        slots: Their slots, int64 ``[n]``.
        rows: The row of each position, int64 ``[n, W]``; the number of rows for none.
        rows_np: All of these, ascending, on the host.
        positions: What the step says of their positions.
        stats: The step's statistics, changed where a draft has been verified.
        logits: The step's logits.
    """

    slots: torch.Tensor
    rows: torch.Tensor
    rows_np: np.ndarray
    positions: PositionStats
    stats: RowStats
    logits: StepLogits


_Question: TypeAlias = Callable[[UnmaskingPolicy, PositionStats, CanvasView], Any]
"""Calls a method of a policy and checks the answer."""


class Selection(NamedTuple):
    """What the policies chose for the N rows and R requests of a step.

    Attributes:
        unmask: Rows whose masked position is unmasked, bool ``[N]``.
        rewrite: Rows whose unmasked position is written again, bool ``[N]``.
        unfinished: Requests whose block wants another step, bool ``[R]``.
        redrawn: Some of the R requests, int64 ``[n]``, and their blocks as they are to be.
        remask: Rows whose unmasked position becomes a mask again, bool ``[N]``; None for none.
        fill: The token of each request that fills what is behind it, -1 for none, int64 ``[R]``; None for
            none.
    """

    unmask: torch.Tensor
    rewrite: torch.Tensor
    unfinished: torch.Tensor
    redrawn: list[tuple[torch.Tensor, Redrawn]]
    remask: torch.Tensor | None = None
    fill: torch.Tensor | None = None


@dataclass(frozen=True)
class _Group:
    """Requests of a step that share a policy.

    Attributes:
        members: Which of the step's R requests, n of them.
        which: The same on the device, int64 ``[n]``.
        slots: Their slots, ``[n]``.
        rows: The row of each position, int64 ``[n, W]``; N, one past the last, for none.
        rewrites: Whether the policy may rewrite positions of these requests.
        whole: Whether the step's rows are the positions of these requests, in order, so that what is
            known of rows needs no gathering. Never so for plug-ins, which get copies: they may
            change what they are given.
    """

    policy: UnmaskingPolicy
    members: list[int]
    which: torch.Tensor
    slots: torch.Tensor
    rows: torch.Tensor
    rewrites: bool
    whole: bool = False


class PolicySelection:
    """Runs the policies of a worker's requests, step by step.

    Attributes:
        failed: Why a policy failed, by the number of its request in the current step.
        first: Column of each request's first position that has not been emitted, int64 ``[R]``.
    """

    def __init__(self, canvases: CanvasStates, sampling_states: Any) -> None:
        """Makes it.

        Args:
            canvases: The canvases of this worker's requests.
            sampling_states: Upstream's ``SamplingStates``, for the seeds.
        """
        self.canvases = canvases
        self.sampling_states = sampling_states
        self.failed: dict[int, str] = {}
        self._memory: dict[UnmaskingPolicy, dict[str, torch.Tensor]] = {}
        self._columns = torch.arange(canvases.width, device=canvases.device)
        self._rows = torch.arange(len(canvases.numbers) * canvases.width, device=canvases.device)
        self._groups: list[_Group] = []
        self._logits: StepLogits | None = None
        self._proposals: RowProposals | None = None
        self.speculation: Speculation | None = None
        """What verifies drafts, in a mode that does."""
        self.first = self._rewritable = self._columns

    def remove(self, slot: int) -> None:
        """Forgets what policies remember of a request that has ended.

        Args:
            slot: Its slot, of which the canvases know no policy any more.
        """
        using = set(self.canvases.policies.values())
        for policy in self._memory.keys() - using:
            del self._memory[policy]
        for memory in self._memory.values():
            for tensor in memory.values():
                tensor[slot].zero_()
        if self.speculation is not None:
            self.speculation.remove(slot)

    def begin(self, step: DenoisingStep, first: torch.Tensor, rewritable: torch.Tensor) -> None:
        """Begins a step; rows that a policy may rewrite become active.

        Args:
            step: The step, changed.
            first: Column of each request's first position that has not been emitted,
                int64 ``[R]``.
            rewritable: Column from which unmasked positions may be rewritten, likewise.
        """
        self.failed = {}
        self.first, self._rewritable = first, rewritable
        members: dict[UnmaskingPolicy, list[int]] = {}
        for i, slot in enumerate(step.slots_np.tolist() if self.canvases.policies else ()):
            if (policy := self.canvases.policies.get(slot)) is not None:
                members.setdefault(policy, []).append(i)
        self._groups = [self._group(step, policy, which) for policy, which in members.items()]
        for group in self._groups:
            if group.rewrites:
                active = _marked(step.active, group.rows, self._unmasked(step, group))
                step.active.copy_(step.active | active)

    def renumber(self, step: DenoisingStep) -> None:
        """Finds the rows of each policy's requests again, in a step of which there are other rows now.

        Args:
            step: The step, of the same requests.
        """
        self._groups = [self._group(step, group.policy, group.members) for group in self._groups]

    def propose(self, logits: StepLogits, step: DenoisingStep, statistics: StepStatistics) -> None:
        """Reads what policies that redraw their blocks want to know; nothing where there is none.

        Args:
            logits: The step's logits; read again by :meth:`select`.
            step: The step.
            statistics: What makes statistics of rows.
        """
        self._logits = self._proposals = None
        groups = [group for group in self._groups if group.policy.redraws]
        if not groups:
            return
        asked = torch.cat([group.rows.flatten() for group in groups])
        active = step.active & _marked(step.active, asked, torch.ones_like(asked, dtype=torch.bool))
        self._logits = logits
        self._proposals = statistics.proposals(logits, step, active, self.canvases.edit_ids or ())

    def speculate(self, stats: RowStats, logits: StepLogits, step: DenoisingStep) -> None:
        """Lets drafts be verified whose policies want it; nothing where there is none.

        Args:
            stats: The step's statistics, changed.
            logits: The step's logits.
            step: The step.
        """
        for group in [group for group in self._groups if group.policy.speculates]:
            assert self.speculation is not None
            members = np.zeros(len(step.requests), dtype=bool)
            members[group.members] = True
            positions = self._stats(stats, group)
            answers = SpeculationRows(
                group.slots, group.rows, step.rows_of(members), positions, stats, logits
            )
            self.speculation(group.policy, self._view(step, group), answers, step)

    @property
    def boosted(self) -> list[int]:
        """Requests of the step, by number, whose policy adds to logits."""
        return [i for group in self._groups if group.policy.boosts for i in group.members]

    @property
    def reads_logits(self) -> bool:
        """Whether a policy of the step's requests is made of more than the statistics of rows."""
        return any(p.boosts or p.redraws or p.speculates for p in (group.policy for group in self._groups))

    def boosts(self, logits: torch.Tensor, step: DenoisingStep) -> list[Boost]:
        """Asks the policies what they add to logits.

        Args:
            logits: The step's, ``[N, V]``.
            step: The step.
        """
        groups = [group for group in self._groups if group.policy.boosts]
        if not groups:
            return []
        count, vocabulary = logits.shape
        asked = torch.cat([group.rows.flatten() for group in groups])
        active = step.active & _marked(step.active, asked, torch.ones_like(asked, dtype=torch.bool))
        nothing = torch.zeros(count, device=logits.device)
        number = torch.arange(count, device=logits.device)
        mask = self.canvases.mask_token_id
        stats = row_stats(logits, nothing, nothing + 1, number, number, active, mask)
        made = []
        for group in groups:
            for part, (boost,) in self._ask(group, stats, step, {"boost": checked_boost}):
                ids = boost.ids
                valid = self._masked(step, part)[..., None] & (ids >= 0) & (ids < vocabulary)
                growth = torch.where(valid, boost.growth, 0.0)
                made.append(Boost(part.rows, ids.clamp(0, vocabulary - 1), growth))
        return made

    def select(self, stats: RowStats, step: DenoisingStep) -> Selection | None:
        """Lets the policies choose; None where none has to."""
        groups = [group for group in self._groups if group.policy.rule is Rule.GIVEN]
        if not groups:
            return None
        chosen = Selection(
            torch.zeros_like(step.active), torch.zeros_like(step.active), torch.zeros_like(step.covered), []
        )
        for group in [group for group in groups if group.policy.redraws]:
            for part, (redrawn,) in self._ask(group, stats, step, {"redraw": checked_redraw}):
                chosen.redrawn.append((part.which, redrawn))
        for group in [group for group in groups if not group.policy.redraws]:
            questions: dict[str, _Question] = {"select": checked_select}
            if group.rewrites:
                questions["rewrite"] = checked_rewrite
            for part, (unmask, *rewrites) in self._ask(group, stats, step, questions):
                masked = self._masked(step, part)
                late = self._late(step, part)
                unmask = unmask & masked
                if part.whole:
                    confidence = stats.sample_prob.view(part.rows.shape)
                else:
                    confidence = stats.sample_prob[part.rows.clamp(max=len(step.active) - 1)]
                best = _best(confidence, masked)
                unmask |= best & (late & ~unmask.any(dim=1))[:, None]
                marked = unmask.flatten() if part.whole else _marked(step.active, part.rows, unmask)
                chosen.unmask.logical_or_(marked)
                for rewrite in rewrites:
                    positions = rewrite.positions & self._unmasked(step, part)
                    chosen.rewrite.logical_or_(_marked(step.active, part.rows, positions))
                    if rewrite.remask is not None:
                        # A block that takes longer than it may only fills up.
                        remask = rewrite.remask & self._unmasked(step, part) & ~late[:, None]
                        remask = _marked(step.active, part.rows, remask)
                        so_far = chosen.remask
                        chosen = chosen._replace(remask=remask if so_far is None else so_far | remask)
                    if rewrite.fill is not None:
                        so_far = chosen.fill
                        fill = torch.full_like(step.index, -1) if so_far is None else so_far
                        chosen = chosen._replace(fill=fill.index_copy(0, part.which, rewrite.fill))
                    if rewrite.unfinished is not None:
                        chosen.unfinished[part.which] = rewrite.unfinished & ~late
        return chosen

    def failures(self) -> dict[int, str]:
        """Why policies failed, on whichever tensor-parallel rank, by the number of the request."""
        theirs = any(is_plug_in(type(group.policy)) for group in self._groups)
        return gathered(self.failed) if theirs else self.failed

    def _group(self, step: DenoisingStep, policy: UnmaskingPolicy, members: list[int]) -> _Group:
        slots = step.slots_np[members].tolist()
        rewrites = policy.rewrites and any(
            policy.may_rewrite(self.canvases.decoding[slot].values) for slot in slots
        )
        if step.whole and len(members) == len(step.requests) and not is_plug_in(type(policy)):
            which = self.canvases.numbers[: len(members)]
            rows = self._rows[: len(step.active)].view(len(members), -1)
            return _Group(policy, members, which, step.slots, rows, rewrites, whole=True)
        which = async_tensor_h2d(members, dtype=torch.int64, device=step.slots.device)
        first = step.row_start[which, None].to(torch.int64)
        rows = first + self._columns
        rows = torch.where(rows < step.row_start[which + 1, None], rows, len(step.active))
        return _Group(policy, members, which, step.slots[which], rows, rewrites)

    def _ask(
        self,
        group: _Group,
        stats: RowStats,
        step: DenoisingStep,
        questions: Mapping[str, _Question],
    ) -> Iterator[tuple[_Group, list[Any]]]:
        """Asks a group's policy, method after method; where one fails, once for each request alone."""
        pending = [i for i in group.members if i not in self.failed]
        if len(pending) < len(group.members):
            group = self._group(step, group.policy, pending)
        parts = [group] if pending else []
        while parts:
            part, where = parts.pop(), "make_memory"
            try:
                view = self._view(step, part)
                answers = []
                for where, question in questions.items():  # noqa: B007
                    answers.append(question(part.policy, self._stats(stats, part), view))
                memory = self._remembers(part, view)
            except Exception as error:
                if len(part.members) > 1:
                    parts += [self._group(step, part.policy, [i]) for i in part.members]
                    continue
                why = f"{where}() raised {type(error).__name__}: {error}"
                self.failed.update(dict.fromkeys(part.members, why))
                logger.exception("%s failed; so does its request.", type(part.policy).__name__)
                continue
            for name, tensor in memory.items():
                self._memory[part.policy][name][part.slots] = tensor
            yield part, answers

    def _remembers(self, group: _Group, view: CanvasView) -> Mapping[str, torch.Tensor]:
        """A policy's memory of a group as the policy left it: of the shapes and types that it had."""
        for name, tensor in self._memory[group.policy].items():
            now, shape = view.memory.get(name), (len(group.slots), *tensor.shape[1:])
            if not isinstance(now, torch.Tensor) or now.shape != shape or now.dtype != tensor.dtype:
                found = f"{now.dtype} {list(now.shape)}" if isinstance(now, torch.Tensor) else repr(now)
                raise TypeError(f"memory[{name!r}] is {found}, not {tensor.dtype} {list(shape)}")
        return view.memory

    def _view(self, step: DenoisingStep, group: _Group) -> CanvasView:
        canvases, slots = self.canvases, group.slots
        asked = {name: self._asked(step, group, name) for name in group.policy.numbers}
        speculation = {}
        if self.speculation is not None and group.policy.speculates:
            round_, settled, waits = self.speculation.state(slots)
            speculation = {"round_": round_, "settled": settled, "waits": waits}
        return CanvasView(
            tokens=canvases.tokens[slots],
            masked=self._masked(step, group),
            step=canvases.step[slots],
            steps=canvases.block_steps(slots),
            block_length=canvases.length[slots],
            unmasked=self._unmasked(step, group),
            seed=self.sampling_states.seeds.gpu[slots],
            position=canvases.start[slots, None] + self._columns,
            values={name: self._to_device(values) for name, values in asked.items()},
            host_values=asked,
            memory=self._remembered(group),
            proposals=self._proposals_of(group),
            room=canvases.room(slots) if group.policy.elastic else None,
            part_length=canvases.block_length.gpu[slots]
            if group.policy.opens_blocks
            else canvases.length[:0],
            **speculation,
        )

    def _proposals_of(self, group: _Group) -> Proposals | None:
        if not group.policy.redraws or self._proposals is None:
            return None
        assert self._logits is not None
        rows = group.rows.clamp(max=len(self._proposals.token) - 1)
        token, confidence, plain = (values[rows] for values in self._proposals)
        return Proposals(
            token=token,
            confidence=confidence,
            plain=plain,
            mask_id=self.canvases.mask_token_id,
            edit_ids=self.canvases.edit_ids or (),
            best_other=partial(_best_other, self._logits, rows),
        )

    def _stats(self, stats: RowStats, group: _Group) -> PositionStats:
        if group.whole:
            sample, sample_prob, top1, top2, entropy = (x.view(group.rows.shape) for x in stats[:5])
        else:
            rows = group.rows.clamp(max=len(stats.sample) - 1)
            sample, sample_prob, top1, top2, entropy = (values[rows] for values in stats[:5])
        return PositionStats(sample, sample_prob, entropy, top1, top2)

    def _masked(self, step: DenoisingStep, group: _Group) -> torch.Tensor:
        """Masked positions with an active row, bool ``[n, W]``."""
        if group.whole and not group.rewrites:
            return step.active.view(group.rows.shape)
        active = torch.nn.functional.pad(step.active, (0, 1))
        return self.canvases.masked[group.slots] & active[group.rows]

    def _unmasked(self, step: DenoisingStep, group: _Group) -> torch.Tensor:
        """Unmasked positions that may be rewritten, bool ``[n, W]``."""
        canvases, slots = self.canvases, group.slots
        unmasked = (canvases.unmasked_at[slots] >= 0) & ~canvases.masked[slots]
        unmasked &= self._columns >= self._rewritable[group.which, None]
        return unmasked & (group.rows < len(step.active))

    def _asked(self, step: DenoisingStep, group: _Group, name: str) -> list[float]:
        """What the group's requests set a number of the policy to, or its default."""
        decoding = self.canvases.decoding
        return [decoding[slot].values[name] for slot in step.slots_np[group.members].tolist()]

    def _to_device(self, values: list[float]) -> torch.Tensor:
        return async_tensor_h2d(values, dtype=torch.float32, device=self.canvases.device)

    def _late(self, step: DenoisingStep, group: _Group) -> torch.Tensor:
        """Whether a block has taken more steps than any policy needs, bool ``[n]``."""
        canvases, slots = self.canvases, group.slots
        limit = canvases.steps.gpu[slots].to(torch.int64) + canvases.length[slots]
        if "max_post_steps" in group.policy.numbers:
            limit += self._to_device(self._asked(step, group, "max_post_steps")).to(torch.int64)
        if group.policy.speculates:
            # A round may be two steps, and unmasks a position at least.
            limit += canvases.length[slots]
        return canvases.step[slots] >= limit

    def _remembered(self, group: _Group) -> dict[str, torch.Tensor]:
        """A copy of what the policy remembers; zeros in the first step of a block."""
        canvases, policy = self.canvases, group.policy
        count = len(canvases.step)
        if policy not in self._memory:
            made = policy.make_memory(count, canvases.width, canvases.device)
            if any(len(tensor) != count for tensor in made.values()):
                raise ValueError(f"make_memory({count}, ...) returned another first dimension.")
            taken = sum(size_of(memory) for memory in self._memory.values())
            if taken + (needed := size_of(made)) > MOST_MEMORY:
                raise ValueError(
                    f"make_memory({count}, {canvases.width}, ...) took {needed} bytes, with {taken} taken by "
                    f"other policies, and {MOST_MEMORY} are kept for all."
                )
            self._memory[policy] = made
        first = canvases.step[group.slots] == 0
        return {
            name: tensor[group.slots].masked_fill(first.view(-1, *[1] * (tensor.dim() - 1)), 0)
            for name, tensor in self._memory[policy].items()
        }


def _marked(like: torch.Tensor, rows: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Values of positions, ``[n, W]``, as values of rows, ``[N]``; other rows are false."""
    marked = torch.zeros(len(like) + 1, dtype=torch.bool, device=like.device)
    marked[rows] = values
    return marked[:-1]


def _best_other(
    logits: StepLogits, rows: torch.Tensor, columns: torch.Tensor, excluded: torch.Tensor
) -> torch.Tensor:
    """See ``Proposals.best_other``; ``rows`` are those of the requests' positions, int64 ``[n, W]``."""
    return logits.best_other(rows.gather(1, columns[:, None])[:, 0], excluded)


def _best(confidence: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """The most confident masked position of each request, bool ``[n, W]``."""
    score = confidence.nan_to_num(nan=-1.0).masked_fill(~masked, -2.0)
    best = torch.zeros_like(masked).scatter_(1, score.argmax(dim=1, keepdim=True), True)
    return best & masked
