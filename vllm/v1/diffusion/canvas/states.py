# SPDX-License-Identifier: Apache-2.0
"""The canvases of all requests of a worker, on its device."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas.noise import MaskNoise
from vllm.v1.diffusion.canvas.tables import SlotFlags, SlotTables
from vllm.v1.diffusion.kernels.rules import Rule
from vllm.v1.diffusion.modes.grid import NO_LIMIT, BlockGrid, BlockRule
from vllm.v1.diffusion.policies import UnmaskingPolicy, get_policy
from vllm.v1.diffusion.request.decoding import CACHED, Decoding
from vllm.v1.diffusion.request.template import HOLE
from vllm.v1.worker.gpu.buffer_utils import UvaBackedTensor
from vllm.v1.worker.gpu.states import RequestState

_MULTIPLES = BlockRule()
"""Blocks begin at multiples of their length."""

_WRITTEN = -2
"""A target that is to be written is kept as ``_WRITTEN - id``, below ``HOLE``, one that is seen as its id."""


class Drafts(Protocol):
    """Drafts that the next step verifies.

    Attributes:
        slots: Slots whose requests speculate.
        waiting: Slots whose draft waits, bool ``[S]``.
    """

    slots: set[int]
    waiting: torch.Tensor


class CanvasStates:
    """The open block of each of S request slots, on a canvas W positions wide.

    Where a mode opens several blocks, "the block" is all of them.

    Attributes:
        tokens: Token ids of the block, known, unmasked or mask, int64 ``[S, W]``.
        masked: Positions still masked, bool ``[S, W]``. A mask token in a prompt
            is a known token: only this tells what is open.
        unmasked_at: The step that unmasked a position, -1 for none, int32 ``[S, W]``.
        confidence: Probability of an unmasked token in that step, float32 ``[S, W]``.
        entropy: Entropy, in nats, of the distribution that it was taken from, float32 ``[S, W]``.
        step: Denoising steps made on the block, int32 ``[S]``.
        start: Position of the block's first token, int64 ``[S]``.
        length: Tokens of the block, int32 ``[S]``: the request's block length, or
            what is left of an answer that ends.
        block_length: Tokens per block, int32 ``[S]``; also ``steps``, ``rule``,
            ``threshold`` (float32), ``origin``, a position at which a block begins, ``span``, tokens
            of all open blocks, ``end``, where the last block ends, ``cached`` (bool),
            whether the steps of a block after its first begin at the block, ``floating`` (bool), whether
            its blocks are drafts, each from the last token on, and
            ``template_end``, where the request's template ends, 0 for none, ``target_end``, where the
            tokens end that are scored, 0 for none, ``canvas``, tokens of a canvas, 0 where the answer is one,
            ``guidance`` (float32), the scale of classifier-free guidance, 0 for none, and ``initial``, tokens
            with which an answer begins whose policy decides how long it is, 0 for others.
        grid: By slot, where the request's blocks lie.
    """

    def __init__(
        self,
        num_slots: int,
        width: int,
        mask_token_id: int,
        device: torch.device,
        rule: BlockRule = _MULTIPLES,
        noise: MaskNoise | None = None,
    ) -> None:
        """Makes the states.

        Args:
            num_slots: Requests that may run at a time.
            width: Longest block, or all blocks that are open at once.
            mask_token_id: Id of the mask token; -1 where noise is no mask.
            device: Where the states live.
            rule: How the mode's blocks lie.
            noise: What stands at positions that are not unmasked; by default the mask token.
        """
        self.width = width
        self.noise = noise or MaskNoise(mask_token_id)
        self._cut = rule.cut
        self._slides, self._elastic = rule.slides, rule.elastic
        self.mask_token_id = mask_token_id
        self.edit_ids: tuple[int, int] | None = None
        """Ids that delete a token and insert one, of models that have them."""
        self.device = device
        # Row ``num_slots`` is a scratch row: writes that are masked out for a request go there.
        self._scratch = num_slots
        self._tables = SlotTables(num_slots + 1, width, device)
        tables = [table[:num_slots] for table in self._tables]
        self.tokens, self.masked, self.unmasked_at = tables[:3]
        self.confidence, self.entropy, self.step, self.start, self.length = tables[3:]
        self.block_length = UvaBackedTensor(num_slots, dtype=torch.int32)
        self.span = UvaBackedTensor(num_slots, dtype=torch.int32)
        self.origin = UvaBackedTensor(num_slots, dtype=torch.int64)
        self.end = UvaBackedTensor(num_slots, dtype=torch.int64)
        self.steps = UvaBackedTensor(num_slots, dtype=torch.int32)
        self.stepwise = UvaBackedTensor(num_slots, dtype=torch.bool)
        self.rule = UvaBackedTensor(num_slots, dtype=torch.int32)
        self.threshold = UvaBackedTensor(num_slots, dtype=torch.float32)
        self.cached = UvaBackedTensor(num_slots, dtype=torch.bool)
        self.template_end = UvaBackedTensor(num_slots, dtype=torch.int64)
        self.target_end = UvaBackedTensor(num_slots, dtype=torch.int64)
        self.floating = UvaBackedTensor(num_slots, dtype=torch.bool)
        self.canvas = UvaBackedTensor(num_slots, dtype=torch.int64)
        self.guidance = UvaBackedTensor(num_slots, dtype=torch.float32)
        self.initial = UvaBackedTensor(num_slots, dtype=torch.int64)
        self._reset_parameters(slice(None))
        self._copy_parameters()
        self.grid: dict[int, BlockGrid] = {}
        self.decoding: dict[int, Decoding] = {}
        """How each slot's request is denoised."""
        self.exiting: set[int] = set()
        """Slots of requests that may exit a block early."""
        self.policies: dict[int, UnmaskingPolicy] = {}
        """By slot, the policies that do something a rule of the kernel's does not."""
        self.columns = torch.arange(width, device=device)
        self.numbers = torch.arange(num_slots, device=device)
        """0, 1, 2 and so on: the requests of a step in which all denoise."""
        self.always = torch.ones(num_slots, dtype=torch.bool, device=device)
        self.flags = SlotFlags(num_slots)
        self.elastic = np.zeros(num_slots, dtype=bool)
        """Slots whose requests compute a part of their block in most steps, on the host."""
        self.speculation: Drafts | None = None
        """Drafts that wait, in a mode that verifies them."""
        self._added: list[int] = []
        self._removed: list[int] = []

    def add(self, slot: int, decoding: Decoding, grid: BlockGrid, prompt_len: int) -> None:
        """Takes a slot for a request; effective with :meth:`apply_added`.

        Args:
            slot: The slot.
            decoding: How the request is denoised.
            grid: Where its blocks lie.
            prompt_len: Position where the answer, and its template, begins.
        """
        policy = get_policy(decoding.algorithm)
        self.grid[slot] = grid
        self.block_length.np[slot] = grid.block_length
        self.span.np[slot] = grid.block_length * grid.open_blocks
        self.origin.np[slot] = grid.origin
        self.end.np[slot] = grid.limit
        self.canvas.np[slot] = grid.canvas or 0
        self.guidance.np[slot] = decoding.guidance
        self.initial.np[slot] = decoding.values["initial_length"] if policy.elastic else 0
        self.steps.np[slot] = decoding.steps
        self.stepwise.np[slot] = decoding.stepwise
        self.rule.np[slot] = policy.rule
        self.threshold.np[slot] = decoding.threshold
        self.floating.np[slot] = decoding.verifies
        self.cached.np[slot] = decoding.cache in CACHED
        self.decoding[slot] = decoding
        self.elastic[slot] = decoding.row_candidates is not None
        self.exiting.discard(slot)
        if decoding.exits:
            self.exiting.add(slot)
        self.policies.pop(slot, None)
        if policy.rule is Rule.GIVEN or policy.boosts:
            self.policies[slot] = policy
        self.flags.add(slot, decoding)
        template, targets = decoding.template, decoding.targets
        self.template_end.np[slot] = prompt_len + len(template) if template else 0
        self.target_end.np[slot] = prompt_len + len(targets) if targets else 0
        self._added.append(slot)

    def remove(self, slot: int) -> None:
        """Gives a request's slot back; on the device with :meth:`apply_added`.

        Args:
            slot: The slot.
        """
        self._reset_parameters(slot)
        self.grid.pop(slot, None)
        self.decoding.pop(slot, None)
        self.exiting.discard(slot)
        self.policies.pop(slot, None)
        self.flags.remove(slot)
        self.elastic[slot] = False
        if slot in self._added:
            self._added.remove(slot)
        self._removed.append(slot)

    @property
    def added(self) -> list[int]:
        """Slots that were taken since the last :meth:`apply_added`."""
        return list(self._added)

    def apply_added(self, requests: RequestState) -> None:
        """Clears the slots removed since the last call and starts the canvases of those added."""
        if not self._added and not self._removed:
            return
        self._copy_parameters()
        if self._removed:
            removed = sorted(set(self._removed))
            self._removed = []
            self._tables.reset(async_tensor_h2d(removed, dtype=torch.int64, device=self.device))
        if not self._added:
            return
        self._stage_templates(requests)
        slots = async_tensor_h2d(self._added, dtype=torch.int64, device=self.device)
        self._added = []
        known, start, length = self.place(requests, slots)
        positions = start[:, None] + self.columns
        ahead, open_ = self._ahead(requests, slots, positions)
        is_known = positions < known[:, None]
        tokens = torch.where(is_known, self._known_tokens(requests, slots, positions), ahead)
        masked = ~is_known & open_ & (self.columns < length[:, None])
        self.tokens[slots] = tokens
        self.masked[slots] = masked
        # Not `x[slots] = 0`: torch copies the number to the device, and waits for it.
        self.unmasked_at.index_fill_(0, slots, -1)
        self.confidence.index_fill_(0, slots, 1.0)
        self.entropy.index_fill_(0, slots, 0.0)
        self.step.index_fill_(0, slots, 0)

    def block_steps(self, slots: torch.Tensor) -> torch.Tensor:
        """Denoising steps of the slots' open blocks, ``Decoding.steps_of``, int32 ``[R]``."""
        return torch.where(self.stepwise.gpu[slots], self.length[slots], self.steps.gpu[slots])

    def place(
        self, requests: RequestState, slots: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sets where canvases begin and end, by the tokens that are known.

        Args:
            requests: The runner's request state.
            slots: int64 ``[R]``, distinct.

        Returns:
            Tokens known, starts and lengths, int64 ``[R]``.
        """
        known = requests.total_len.gpu[slots].to(torch.int64)
        start = known - (known - self.origin.gpu[slots]) % self.block_length.gpu[slots]
        if self._slides:
            start = known
        # A draft begins with the last token behind the prompt.
        drafted = self.floating.gpu[slots] & (known > self.origin.gpu[slots])
        start = torch.where(drafted, known - 1, start)
        length = torch.minimum(self.span.gpu[slots].to(torch.int64), self.end.gpu[slots] - start)
        if self._elastic:
            given = self.template_end.gpu[slots]
            length = torch.where(given > 0, given - start, length)
        if self.initial.np.any():
            initial = self.initial.gpu[slots]
            length = torch.where(initial > 0, torch.minimum(initial, length), length)
        self.start[slots] = start
        self.length[slots] = length.to(torch.int32)
        return known, start, length

    def canvas_end(self, slots: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Where the canvases end that hold some positions behind the prompt, int64 ``[R]``.

        Args:
            slots: int64 ``[R]``.
            positions: One of each slot, ``[R]``.
        """
        length = self.canvas.gpu[slots]
        end = positions - (positions - self.origin.gpu[slots]) % length.clamp(min=1) + length
        return torch.minimum(self.end.gpu[slots], end.where(length > 0, NO_LIMIT))

    def room(self, slots: torch.Tensor) -> torch.Tensor:
        """Most tokens that the slots' open blocks may have, int64 ``[R]``."""
        return torch.minimum(self.span.gpu[slots].to(torch.int64), self.end.gpu[slots] - self.start[slots])

    def floor(self, positions: torch.Tensor, slots: torch.Tensor, slots_np: np.ndarray) -> torch.Tensor:
        """Starts of the blocks that hold some positions, behind the prompt, ``[R]``.

        Args:
            positions: One of each slot, ``[R]``.
            slots: The slots, ``[R]``.
            slots_np: The same on the host.
        """
        length = _common(self.block_length, slots, slots_np)
        origin = _common(self.origin, slots, slots_np)
        if isinstance(origin, int) and origin == 0:
            return positions - positions % length
        return positions - (positions - origin) % length

    def next_block(
        self,
        requests: RequestState,
        slots: torch.Tensor,
        finished: torch.Tensor,
        start: torch.Tensor,
        whole: bool = False,
    ) -> None:
        """Turns to the next block where the current one is finished.

        Args:
            requests: The runner's request state.
            slots: int64 ``[R]``, distinct.
            finished: bool ``[R]``.
            start: Where their next blocks begin, int64 ``[R]``.
            whole: Whether the blocks are as wide as the canvas.
        """
        tables = self._tables
        turned = torch.where(finished, slots, self._scratch)
        tables.start.index_copy_(0, turned, start)
        tables.step.index_fill_(0, turned, 0)
        tables.unmasked_at.index_fill_(0, turned, -1)
        if self.flags.graded.any():
            tables.confidence.index_fill_(0, turned, 1.0)
            tables.entropy.index_fill_(0, turned, 0.0)
        templates = self._given
        if whole and not self._cut and not templates:
            self.noise.renew(tables.tokens, turned, slots, start)
            tables.masked.index_fill_(0, turned, True)
            return
        if self._cut:
            left = (self.end.gpu[slots] - start).clamp(min=0)
            length = torch.minimum(self.span.gpu[slots], left).to(torch.int32)
            tables.length[turned] = length
        else:
            length = self.length[slots]
        masked = self.columns < length[:, None]
        if templates:
            ahead, open_ = self._ahead(requests, slots, start[:, None] + self.columns)
            tables.tokens[turned] = ahead
            masked &= open_
        else:
            self.noise.renew(tables.tokens, turned, slots, start)
        tables.masked[turned] = masked

    def slide(self, requests: RequestState, slots: torch.Tensor, leaving: torch.Tensor) -> None:
        """Moves windows on by the tokens that leave at their front; new positions come in behind.

        Args:
            requests: The runner's request state.
            slots: int64 ``[R]``, distinct.
            leaving: Tokens that leave, int64 ``[R]``.
        """
        start, old = self.start[slots] + leaving, self.length[slots]
        length = torch.minimum(
            self.span.gpu[slots].to(torch.int64), (self.end.gpu[slots] - start).clamp(min=0)
        )
        source = self.columns + leaving[:, None]
        stays, source = source < old[:, None], source.clamp(max=self.width - 1)
        ahead, open_ = self._ahead(requests, slots, start[:, None] + self.columns)
        open_ = open_ & (self.columns < length[:, None])
        self.tokens[slots] = torch.where(stays, self.tokens[slots].gather(1, source), ahead)
        self.masked[slots] = torch.where(stays, self.masked[slots].gather(1, source), open_)
        for table, new in ((self.unmasked_at, -1), (self.confidence, 1.0), (self.entropy, 0.0)):
            table[slots] = torch.where(stays, table[slots].gather(1, source), new)
        self.start[slots] = start
        self.length[slots] = length.to(torch.int32)

    def input_ids(self, requests: RequestState, slots: np.ndarray, positions: torch.Tensor) -> torch.Tensor:
        """The tokens that a step computes.

        Args:
            requests: The runner's request state, for tokens before the canvas.
            slots: Slot of each token, int64 ``[T]``, on the host.
            positions: Position of each token, int64 ``[T]``, on the device.

        Returns:
            int64 ``[T]``. Positions behind the open block hold masks, or what a template gives.
        """
        slot = async_tensor_h2d(slots, dtype=torch.int64, device=self.device)
        offset = positions - self.start.index_select(0, slot)
        on_canvas = self.tokens[slot, offset.clamp(0, self.width - 1)]
        before = self._known_tokens(requests, slot, positions)
        ids = torch.where(offset < 0, before, on_canvas)
        behind = offset >= self.length.index_select(0, slot)
        given = self._given
        ahead = self._ahead(requests, slot, positions)[0] if given else self.noise.ahead(slot, positions)
        return torch.where(behind, ahead, ids)

    def _stage_templates(self, requests: RequestState) -> None:
        """Writes new requests' templates, and targets, where the tokens of their answers will stand."""
        for slot in self._added:
            decoding = self.decoding[slot]
            if not (given := _coded(decoding) or decoding.template):
                continue
            end = int((self.target_end if decoding.targets else self.template_end).np[slot])
            begin, known = end - len(given), int(requests.prefill_len.np[slot])
            room = requests.all_token_ids.gpu.shape[1] - begin
            requests.all_token_ids.stage_write(slot, known, given[known - begin : room])
        requests.all_token_ids.apply_write()

    @property
    def _given(self) -> bool:
        """Whether a request has a template or targets."""
        return bool(self.template_end.np.any() or self.target_end.np.any())

    def targets(
        self, requests: RequestState, slots: torch.Tensor, columns: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is to be written at some positions of canvases.

        Args:
            requests: The runner's request state.
            slots: Slot of each, int64 ``[N]``.
            columns: Column of each, int64 ``[N]``.

        Returns:
            The tokens, int64 ``[N]``, and whether there are any, bool ``[N]``.
        """
        positions = self.start[slots] + columns
        coded = self._known_tokens(requests, slots, positions)
        return _WRITTEN - coded, (coded <= _WRITTEN) & (positions < self.target_end.gpu[slots])

    def _ahead(
        self, requests: RequestState, slots: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What stands at positions whose tokens are not known yet.

        Args:
            requests: The runner's request state.
            slots: Slot of each row or of each position, int64 ``[R]`` or ``[T]``.
            positions: int64 ``[R, W]`` or ``[T]``.

        Returns:
            Of the shape of ``positions``: tokens, int64, masks or what a template gives;
            and whether they are to be written, bool. Behind the last target none are.
        """
        noise = self.noise.ahead(slots, positions)
        if not self._given:
            noise = torch.full_like(positions, noise) if isinstance(noise, int) else noise
            return noise, torch.ones_like(positions, dtype=torch.bool)
        given = self._known_tokens(requests, slots, positions)
        ends = self.template_end.gpu[slots], self.target_end.gpu[slots]
        end, target_end = (end[:, None] for end in ends) if positions.dim() > 1 else ends
        holes = (given == HOLE) | (positions >= end)
        scored, inside = target_end > 0, positions < target_end
        holes = torch.where(scored, ~inside | (given <= _WRITTEN), holes)
        open_ = holes & (inside | ~scored)
        return torch.where(holes, noise, given), open_

    @staticmethod
    def _known_tokens(requests: RequestState, slots: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        tokens = requests.all_token_ids.gpu
        inside = positions.clamp(max=tokens.shape[1] - 1)
        if inside.dim() > slots.dim():
            slots = slots[:, None]
        return tokens[slots, inside].to(torch.int64)

    def _reset_parameters(self, slots: int | slice) -> None:
        """Parameters of slots without a request; in a warm-up batch they hold a block."""
        for table in (
            *(self.origin, self.stepwise, self.threshold, self.cached, self.template_end, self.floating),
            *(self.target_end, self.canvas, self.guidance, self.initial),
        ):
            table.np[slots] = 0
        self.block_length.np[slots] = self.span.np[slots] = self.steps.np[slots] = self.width
        self.end.np[slots] = NO_LIMIT
        self.rule.np[slots] = Rule.STATIC

    def _copy_parameters(self) -> None:
        for table in vars(self).values():
            if isinstance(table, UvaBackedTensor):
                table.copy_to_uva()


def _coded(decoding: Decoding) -> list[int] | None:
    """A request's targets as they are kept where its answer will stand; None for none."""
    if decoding.targets is None:
        return None
    hidden = range(len(decoding.targets)) if decoding.hidden is None else set(decoding.hidden)
    return [_WRITTEN - token if i in hidden else token for i, token in enumerate(decoding.targets)]


def _common(values: UvaBackedTensor, slots: torch.Tensor, slots_np: np.ndarray) -> int | torch.Tensor:
    """What some slots have in common, else each one's own, int64 ``[R]``."""
    own = values.np[slots_np]
    return int(own[0]) if (own == own[0]).all() else values.gpu[slots].to(torch.int64)
