# SPDX-License-Identifier: Apache-2.0
"""Turns a step's logits into unmasked canvas positions and emitted blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch

from vllm.config.model import PROCESSED_LOGPROBS_MODES
from vllm.sampling_params import SamplingParams
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.canvas.step import DenoisingStep
from vllm.v1.diffusion.grammar.states import GrammarStates
from vllm.v1.diffusion.kernels.row_stats import RowStats
from vllm.v1.diffusion.layers.vocabulary_shares import VocabularyShares
from vllm.v1.diffusion.policies.memory import MOST_MEMORY, MOST_TEMPORARY
from vllm.v1.diffusion.sampling import step_logits
from vllm.v1.diffusion.sampling.early_exits import EarlyExits
from vllm.v1.diffusion.sampling.logits import LogitsPipeline
from vllm.v1.diffusion.sampling.logprobs import CanvasLogprobs
from vllm.v1.diffusion.sampling.policy_selection import PolicySelection
from vllm.v1.diffusion.sampling.rows import DenoisedBatch, RowLayout
from vllm.v1.diffusion.sampling.statistics import StepStatistics
from vllm.v1.diffusion.sampling.step_logits import StepLogits
from vllm.v1.diffusion.sampling.step_outputs import StepOutputs
from vllm.v1.diffusion.sampling.unmasking import Unmasking
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.output import SamplerOutput


class DenoisingSampler:
    """Processed logits, their statistics, one choice of positions; no wait for the device.

    The runner calls it where it would call upstream's sampler, whose per-request
    sampling parameters it uses. Each part is a module: ``logits``, ``statistics``,
    ``unmasking``, ``logprobs``, ``step_outputs``; ``rows`` is the mode's.
    """

    compute_nans = False
    profiled = False
    """Whether memory is being profiled; the engine's KV cache is made afterwards."""

    def __init__(
        self,
        sampler: Any,
        canvases: CanvasStates,
        grammars: GrammarStates,
        rows: RowLayout,
        overlaps: bool,
        tempered_confidence: bool,
        keeps_filters: bool,
        most_rows: int,
        shares: VocabularyShares | None = None,
    ) -> None:
        """Makes the sampler.

        Args:
            sampler: Upstream's sampler.
            canvases: The canvases of this worker's requests.
            grammars: The grammars of those that have one.
            rows: The mode's rows of logits.
            overlaps: Whether a window may have been scheduled before it was known
                that the step before it finishes the block.
            tempered_confidence: Whether confidence is the probability in the
                distribution that is sampled (SDAR), not in the plain softmax
                (LLaDA).
            keeps_filters: Whether top-k and top-p act at temperature 0 too (Dream).
            most_rows: Rows of logits that a step may have.
            shares: This rank's share of the vocabulary; None where rows of logits are whole.
        """
        # The runner reads these two, and counts emitted tokens for the penalties.
        self.sampling_states = sampler.sampling_states
        self.penalties_state = sampler.penalties_state
        self.req_states = sampler.req_states
        self.canvases = canvases
        self.grammars = grammars
        self.rows = rows
        self.overlaps = overlaps
        self._unwritable: dict[int, str] = {}
        """Why no token goes on with the grammars of the last step's requests, by their number."""
        self.most_rows = most_rows
        self.shares = shares
        self.policies = PolicySelection(canvases, sampler.sampling_states)
        self.logits = LogitsPipeline(sampler, canvases, self.policies, keeps_filters)
        exits = EarlyExits(canvases)
        # A mode may have parts of its own for these two: ``RowLayout.bind``.
        self.unmasking: Callable[[RowStats, DenoisingStep, bool], torch.Tensor]
        self.unmasking = Unmasking(canvases, self.policies, exits, self.logits.bad_words, rows)
        self.statistics: Callable[[StepLogits, DenoisingStep], RowStats]
        self.statistics = StepStatistics(sampler.sampling_states, canvases, tempered_confidence)
        self.logprobs = CanvasLogprobs(sampler, canvases)
        self._noted = True

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> None:
        """Notes a request's sampling parameters."""
        self._noted = True
        self.logits.add_request(req_idx, sampling_params)
        self.logprobs.add_request(req_idx, sampling_params)

    def remove(self, req_idx: int) -> None:
        """Gives a request's slot back, which the canvases have given back."""
        self.logits.remove(req_idx)
        self.logprobs.remove(req_idx)
        self.policies.remove(req_idx)

    def apply_staged_writes(self) -> None:
        """Makes the noted parameters visible to the device; called every step."""
        if not self._noted:
            return
        self._noted = False
        self.logits.apply_staged_writes()
        self.logprobs.apply_staged_writes()

    def __call__(
        self,
        logits: torch.Tensor,
        input_batch: InputBatch,
        draft_logits: torch.Tensor | None = None,
    ) -> SamplerOutput:
        """Makes one denoising step for every request that has logits.

        Args:
            logits: ``[rows, vocab_size]``; a row for each canvas position of the
                requests that denoise in this step, in batch order, and what the mode has computed beside
                them (``RowLayout.folded``). With ``shares``, this rank's columns.
            input_batch: The step's batch.
            draft_logits: Unused; upstream's interface.

        Returns:
            The tokens of blocks that finished, ``[requests, W]``, how many they
            are, and how many of the window's positions stay uncomputed.
        """
        if self.profiled and len(logits):
            self.rehearse(logits)
        canvases = self.canvases
        num_reqs = input_batch.num_reqs
        slots = input_batch.idx_mapping[:num_reqs]
        known, window_end = (
            self.req_states.total_len.gpu.index_select(0, slots),
            input_batch.seq_lens[:num_reqs],
        )
        start = canvases.start.index_select(0, slots)
        block_end = start + canvases.length.index_select(0, slots)
        overlaps = self.overlaps and canvases.flags.unforeseen[input_batch.idx_mapping_np].any()
        may_miss_block = overlaps or self.rows.may_miss_block(input_batch)
        step = DenoisingStep.of(input_batch, canvases, self.rows, self.req_states, overlaps, may_miss_block)
        if step is None:
            finished = slots.new_zeros(num_reqs, dtype=torch.bool)
            outputs, logprobs = StepOutputs(slots.new_zeros(num_reqs, canvases.width)), None
            failures = None
        else:
            done, outputs, logprobs = self._denoise(
                logits, step, num_reqs, known - start, block_end, overlaps
            )
            failed = self.policies.failures() | self._unwritable
            failures = {input_batch.req_ids[int(step.requests[i])]: why for i, why in failed.items()}
            finished = done
            if len(done) < num_reqs:
                finished = slots.new_zeros(num_reqs, dtype=torch.bool)
                finished[step.index] = done
        batch = DenoisedBatch(input_batch, self.req_states, window_end, known, start, block_end, finished)
        computed, num_sampled = self.rows.computed(batch), self.rows.emit(batch)
        return SamplerOutput(
            sampled_token_ids=outputs.tokens,
            logprobs_tensors=logprobs,
            num_nans=None,
            num_sampled=num_sampled.to(torch.int32),
            num_rejected=(window_end - computed).to(torch.int32),
            unmask_trace=outputs.trace,
            policy_failures=failures or None,
        )

    def rehearse(self, logits: torch.Tensor) -> None:
        """Takes, for a moment, the memory of the largest step, so that a profile counts it.

        Upstream's profile has one row of logits per request, none of which is changed, and no policy.

        Args:
            logits: The profile's logits.
        """
        rows = self.most_rows
        held = [logits.new_empty(max(0, rows - len(logits)), logits.shape[1])]
        if self.shares is not None:  # Rows as they come from the ranks, and put in order.
            logits = logits.new_empty(len(logits), self.shares.vocabulary)
            held += [logits.new_empty(rows, self.shares.vocabulary) for _ in range(2)]
        held += [logits.new_empty(size, dtype=torch.uint8) for size in (MOST_MEMORY, MOST_TEMPORARY)]
        if self.logprobs.mode in PROCESSED_LOGPROBS_MODES:  # Changed rows are kept until they are read.
            held.append(logits.new_empty(rows, logits.shape[1], dtype=torch.float32))
        if self.policies.speculation is not None:  # Drafts beside what verifies them.
            part = min(rows, max(1, step_logits.MOST_BYTES // (4 * logits.shape[1])))
            held.append(logits.new_empty(part, logits.shape[1], dtype=torch.float32))
        held.append(self.logits.rehearse(rows, logits))

    def _reads_rows(self, step: DenoisingStep) -> bool:
        """Whether anything of a step reads whole rows of logits; the same on all ranks."""
        return (
            not isinstance(self.statistics, StepStatistics)
            or self.statistics.reads_rows(step)
            or self.rows.changes_logits
            or not self.grammars.empty
            or self.logits.changes(step)
            or self.policies.reads_logits
            or self.logprobs.wants(step)
        )

    def _give_targets(self, stats: RowStats, step: DenoisingStep) -> None:
        """Puts the tokens of texts that are scored in the place of what their rows predict."""
        canvases = self.canvases
        if canvases.flags.scored[step.slots_np].any():
            tokens, given = canvases.targets(self.req_states, step.row_slot, step.row_column)
            stats.sample.copy_(torch.where(given, tokens, stats.sample))

    def _blank_targets(self, step: DenoisingStep) -> None:
        """Puts masks in the place of targets of a sample that were written: later blocks see the sample."""
        canvases = self.canvases
        blanked = canvases.flags.blanked[step.slots_np]
        if not blanked.any():
            return
        cell = (step.row_slot, step.row_column)
        _, written = canvases.targets(self.req_states, *cell)
        rows = async_tensor_h2d(blanked[step.request_np], device=written.device)
        held = canvases.tokens[cell]
        canvases.tokens[cell] = torch.where(written & rows, canvases.mask_token_id, held)

    def _denoise(
        self,
        logits: torch.Tensor,
        step: DenoisingStep,
        num_reqs: int,
        first: torch.Tensor,
        block_end: torch.Tensor,
        overlaps: bool,
    ) -> tuple[torch.Tensor, StepOutputs, LogprobsTensors | None]:
        """Unmasks positions of the R requests that denoise.

        Args:
            logits: The step's logits.
            step: The step.
            num_reqs: Requests of the batch.
            first: Known tokens of each one's block, int64 ``[num_reqs]``.
            block_end: Where each one's block ends, likewise.
            overlaps: Whether a window may not cover its block; see ``DenoisingStep``.

        Returns:
            Whose blocks are done, bool ``[R]``; what leaves; its log probabilities.
        """
        canvases = self.canvases
        logits = self.rows.folded(logits, step)
        first = step.for_requests(first).clamp(min=0)
        self.policies.begin(step, first, self.rows.rewritable(step.slots, first))
        shares = self.shares
        if shares is not None and self._reads_rows(step):
            logits, shares = shares.whole(logits), None
        self.rows.change_logits(logits, step)
        self.grammars.restrict(logits, step)
        processed = self.logits(logits, step, keep=self.logprobs.reads_processed(step))
        if shares is None:
            stats = self.statistics(processed, step)
        else:
            assert isinstance(self.statistics, StepStatistics)
            stats = self.statistics.of_share(logits, shares, step)
        self._give_targets(stats, step)
        self.policies.propose(processed, step, cast(StepStatistics, self.statistics))
        self.policies.speculate(stats, processed, step)
        before = self.logprobs.snapshot(step)
        stats, blocks = self.rows.spread(stats, step)
        if blocks is not step:
            self.policies.renumber(blocks)
        done = self.unmasking(stats, blocks, overlaps)
        self._unwritable = self.grammars.revise(done, stats, blocks, overlaps) or {}
        self.logprobs.record(processed, step, before)
        self._blank_targets(step)
        outputs = StepOutputs.of(canvases, step, first, num_reqs, self.rows.begins_open)
        outputs = self.rows.outputs(outputs, step)
        logprobs = self.logprobs.read(step, first, num_reqs)
        canvases.next_block(self.req_states, step.slots, done, step.for_requests(block_end), blocks.whole)
        return done, outputs, logprobs
