# SPDX-License-Identifier: Apache-2.0
"""Keeps drafts until the next step has verified them, and says what is accepted of them.

A token x of a draft has the probability p there, and q where the model sees nothing but the tokens before it.
It is accepted with probability ``min(1, q(x) / p(x))``, from left to right along the first run of masks. The
first that is not accepted gives way to a draw from ``q - p``, where that is positive. Both are the
distributions that tokens are drawn from; at temperature 0, those of temperature 1.
"""

from __future__ import annotations

from typing import Any

import torch

from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.canvas.step import DenoisingStep
from vllm.v1.diffusion.kernels.noise import draw_offset
from vllm.v1.diffusion.kernels.row_stats import row_stats
from vllm.v1.diffusion.policies import CanvasView, UnmaskingPolicy
from vllm.v1.diffusion.policies.noise import uniform
from vllm.v1.diffusion.policies.parameter import MAX_STEPS
from vllm.v1.diffusion.policies.speculating.self_speculation import SelfSpeculation, first_span
from vllm.v1.diffusion.request.decoding import Decoding
from vllm.v1.diffusion.sampling.policy_selection import SpeculationRows
from vllm.v1.diffusion.sampling.step_logits import MOST_BYTES, in_parts


class Verification:
    """The drafts of a worker's requests.

    Attributes:
        waiting: Slots whose draft the next step verifies, bool ``[S]``.
        tokens: Those drafts, and what stands beside them, int64 ``[S, W]``.
    """

    def __init__(
        self,
        canvases: CanvasStates,
        sampling_states: Any,
        vocab_size: int,
        dtype: torch.dtype,
        max_model_len: int,
    ) -> None:
        """Makes it, empty.

        Args:
            canvases: The canvases of this worker's requests.
            sampling_states: Upstream's ``SamplingStates``, for seeds and temperatures.
            vocab_size: Ids of the vocabulary.
            dtype: Of the model's logits.
            max_model_len: Tokens of the context.
        """
        slots, width, device = len(canvases.step), canvases.width, canvases.device
        self.canvases = canvases
        self.sampling_states = sampling_states
        self.max_model_len = max_model_len
        self.waiting = torch.zeros(slots, dtype=torch.bool, device=device)
        self.tokens = torch.zeros(slots, width, dtype=torch.int64, device=device)
        self._confidence = torch.zeros(slots, width, device=device)
        self._accepted = torch.zeros(slots, width, dtype=torch.bool, device=device)
        self._on = torch.zeros(slots, dtype=torch.bool, device=device)
        """What the policy remembers of a request from draft to draft."""
        self._rounds = torch.zeros(slots, dtype=torch.int32, device=device)
        self._drafts = torch.zeros(slots, width, vocab_size, dtype=dtype, device=device)
        """What the model said in the draft: the logits of all positions."""
        self.slots: set[int] = set()
        """Slots whose requests speculate."""

    def add(self, slot: int, decoding: Decoding) -> None:
        """Takes a slot for a request."""
        self.remove(slot)
        if decoding.speculates:
            self.slots.add(slot)

    def remove(self, slot: int) -> None:
        """Gives a request's slot back."""
        if slot not in self.slots:
            return
        self.slots.remove(slot)
        tables = (self.waiting, self.tokens, self._confidence, self._accepted, self._on, self._rounds)
        for table in (*tables, self._drafts):
            table[slot].zero_()

    def state(self, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See ``sampling.policy_selection.Speculation``."""
        return self._rounds[slots], self._accepted[slots], self.waiting[slots]

    def __call__(
        self, policy: UnmaskingPolicy, view: CanvasView, answers: SpeculationRows, step: DenoisingStep
    ) -> None:
        """See ``sampling.policy_selection.Speculation``."""
        assert isinstance(policy, SelfSpeculation)
        canvases, slots = self.canvases, answers.slots
        verified = self.waiting[slots]
        begins = (view.step == 0) & ~verified
        rounds = torch.where(begins, 0, self._rounds[slots] + ~verified)
        ratio = self._ratios(answers, step, ~verified)
        accepted, tokens = self._accept(view, answers, ratio, verified)
        positions, stats = answers.positions, answers.stats
        on = self._on[slots]
        before = on & ~begins if policy.forgets else on
        wants, now = policy.wants(positions, view, before, self._drafts.shape[2])
        room = canvases.start[slots] + 2 * canvases.length[slots] <= self.max_model_len
        wants &= ~verified & room
        drafted = policy.drafted(positions, view)
        confidence = torch.where(verified[:, None], self._confidence[slots], positions.confidence)
        draft = torch.where(drafted, positions.token, view.tokens)
        self._rounds[slots] = rounds.to(torch.int32)
        self._accepted[slots] = accepted
        self._on[slots] = torch.where(verified, on, now)
        self.waiting[slots] = wants
        self.tokens[slots] = torch.where(wants[:, None], draft, tokens)
        self._confidence[slots] = confidence
        # From here on, the step says what the draft has said, and what its verification makes of it.
        sample = torch.where(verified[:, None], tokens, positions.token)
        for values, now in ((stats.sample, sample), (stats.sample_prob, confidence)):
            # One place more takes what no row stands for.
            padded = torch.nn.functional.pad(values, (0, 1))
            padded[answers.rows] = now
            values.copy_(padded[:-1])

    def _ratios(self, answers: SpeculationRows, step: DenoisingStep, drafts: torch.Tensor) -> torch.Tensor:
        """q(x) / p(x) of the positions of drafts that are verified; keeps the logits of the others.

        Args:
            answers: The step's rows of the requests.
            step: The step.
            drafts: Requests whose rows are a draft, bool ``[n]``.

        Returns:
            float32 ``[n, W]``.
        """
        device, vocabulary = self.canvases.device, self._drafts.shape[2]
        ratios = torch.ones(len(step.row_slot) + 1, device=device)
        drafts_of = torch.zeros(len(self.waiting), dtype=torch.bool, device=device)
        drafts_of[answers.slots] = drafts
        # Fewer rows than elsewhere: of each, a draft and its verification are compared in float32.
        for part in in_parts(answers.rows_np, 4 * vocabulary):
            rows = async_tensor_h2d(part, dtype=torch.int64, device=device)
            slot, column = step.row_slot[rows].to(torch.int64), step.row_column[rows]
            now, held = answers.logits.of(part), self._drafts[slot, column]
            scale, token = self._scale(slot), self.tokens[slot, column][:, None]
            q, p = (
                (values / scale).log_softmax(dim=1).gather(1, token)[:, 0] for values in (now, held.float())
            )
            ratios[rows] = (q - p).exp()
            kept = torch.where(drafts_of[slot][:, None], now.to(held.dtype), held)
            self._drafts[slot, column] = kept
        return ratios[answers.rows]

    def _accept(
        self, view: CanvasView, answers: SpeculationRows, ratio: torch.Tensor, verified: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions that verification unmasks, bool ``[n, W]``, and their tokens, int64 ``[n, W]``."""
        span = first_span(view.masked) & verified[:, None]
        probability = ratio.pow(view.values["tempering"][:, None]).clamp(max=1)
        refused = span & ~(self.uniform(view) < probability)
        refusals = refused.cumsum(dim=1)
        last = refused & (refusals == 1)
        tokens = self.tokens[answers.slots]
        resampled = last & (view.values["resample"] > 0)[:, None]
        column = last.to(torch.int8).argmax(dim=1)
        drawn = self._residuals(view, answers, column)
        accepted = (span & (refusals == 0)) | last
        return accepted, torch.where(resampled, drawn[:, None], tokens)

    def _residuals(self, view: CanvasView, answers: SpeculationRows, column: torch.Tensor) -> torch.Tensor:
        """A draw from what verification says beyond the draft, at a column of each request, int64 ``[n]``."""
        at = column[:, None]
        rows = answers.rows.gather(1, at)[:, 0].clamp(max=len(answers.stats.sample) - 1)
        position, drawn = view.position.gather(1, at)[:, 0], torch.empty_like(column)
        most = max(1, MOST_BYTES // (16 * self._drafts.shape[2]))
        for first in range(0, len(column), most):
            part = slice(first, first + most)
            slots, scale = answers.slots[part], self._scale(answers.slots[part])
            q = (answers.logits.at(rows[part]) / scale).softmax(dim=1)
            p = (self._drafts[slots, column[part]].float() / scale).softmax(dim=1)
            beyond = (q - p).clamp_(min=0)
            beyond = torch.where(beyond.any(dim=1, keepdim=True), beyond, q).log_()
            drawn[part] = self.draw(beyond, view.seed[part], position[part], view.step[part])
        return drawn

    def uniform(self, view: CanvasView) -> torch.Tensor:
        """The numbers in (0, 1) by which tokens are accepted, float64 ``[n, W]``."""
        return uniform(view.seed[:, None], view.position, view.step[:, None])

    def draw(
        self, logits: torch.Tensor, seed: torch.Tensor, position: torch.Tensor, step: torch.Tensor
    ) -> torch.Tensor:
        """A token of each row of logits, int64 ``[n]``.

        Args:
            logits: float32 ``[n, V]``.
            seed: The requests' seeds, int64 ``[n]``.
            position: Positions of the tokens, int64 ``[n]``.
            step: Steps made on the blocks, int32 ``[n]``.
        """
        ones = torch.ones(len(logits), device=logits.device)
        # No step has such a number: what draws the tokens of drafts uses other random numbers.
        offset = draw_offset(position, step.to(torch.int64) + MAX_STEPS)
        return row_stats(logits, ones, ones, seed, offset, None, self.canvases.mask_token_id).sample

    def _scale(self, slots: torch.Tensor) -> torch.Tensor:
        """What logits are divided by, ``[n, 1]``."""
        temperature = self.sampling_states.temperature.gpu[slots]
        return torch.where(temperature == 0, 1.0, temperature)[:, None]
