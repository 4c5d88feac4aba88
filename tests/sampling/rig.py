# SPDX-License-Identifier: Apache-2.0
"""The denoising sampler between a made-up model and a made-up runner."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from vllm import SamplingParams
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.families import FAMILIES
from vllm.v1.diffusion.modes import BIDIRECTIONAL, CAUSAL, Mode
from vllm.v1.diffusion.policies import get_policy
from vllm.v1.diffusion.request.decoding import Decoding
from vllm.v1.diffusion.sampling.rows import RowLayout
from vllm.v1.diffusion.sampling.sampler import DenoisingSampler
from vllm.v1.diffusion.worker.speculating.verification import Verification
from vllm.v1.worker.gpu.sample.sampler import Sampler
from vllm.v1.worker.gpu.states import RequestState

VOCABULARY = 40
MASK = 39
DELETE, SPLIT = 4, 5
"""Ids that delete a token and insert one."""
WIDTH = 8
MAX_LENGTH = 64


def model(key: int, position: int, step: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The logits of a position: random, the same in every batch, ``[VOCABULARY]``."""
    rng = np.random.default_rng([key, position, step])
    return torch.tensor(rng.normal(0, 2, VOCABULARY), dtype=torch.float32).to(dtype)


def numbers_of(algorithm: str) -> dict[str, float]:
    """The numbers that a policy reads beside the threshold, where they have a default."""
    numbers = get_policy(algorithm).numbers
    own = {"end_token_id": 3.0} if "end_token_id" in numbers else {}
    return own | {k: p.default for k, p in numbers.items() if k != "threshold" and p.default is not None}


@dataclass
class Request:
    """A request."""

    params: SamplingParams
    prompt: list[int]
    key: int = 0
    """What the model's logits depend on."""
    algorithm: str = "low_confidence_static"
    steps: int = 4
    block_length: int = 4
    threshold: float = 0.5
    values: dict[str, float] = field(default_factory=dict)
    trace: bool = True
    more: dict[str, Any] = field(default_factory=dict)
    """Further fields of ``Decoding``."""

    def decoding(self) -> Decoding:
        """As the worker has it."""
        how = (self.algorithm, self.steps, self.block_length, self.threshold)
        vetoes = any(len(word) > 1 for word in self.params.bad_words_token_ids or ())
        values = {"threshold": self.threshold, **self.values}
        return Decoding(*how, trace=self.trace, values=values, vetoes=vetoes, **self.more)


@dataclass
class Answer:
    """What was emitted for a request."""

    tokens: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    """The step of its block that finished each token."""
    confidence: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    logprobs: list[tuple[list[int], list[float], int]] = field(default_factory=list)
    """Ids and scores, the token's own first, and its rank."""


class Rig:
    """Runs requests block after block; slots are given from the highest down."""

    def __init__(
        self,
        aligned: bool = True,
        tempered: bool = True,
        mode: str = "raw_logprobs",
        dtype: torch.dtype = torch.float32,
        num_slots: int = 6,
        rows: type[RowLayout] | None = None,
        kind: Mode | None = None,
    ) -> None:
        device = torch.device("cpu")
        kind = kind or (CAUSAL if aligned else BIDIRECTIONAL)
        self.blocks = kind.blocks
        self.dtype = dtype
        self.requests = RequestState(num_slots, MAX_LENGTH, 256, WIDTH, VOCABULARY, device)
        sampler = Sampler(
            SimpleNamespace(reasoning_config=None),  # type: ignore[arg-type]
            num_slots,
            VOCABULARY,
            device,
            self.requests,
            logprobs_mode=mode,  # type: ignore[arg-type]
        )
        self.canvases = CanvasStates(num_slots, WIDTH, MASK, device, self.blocks)
        self.canvases.edit_ids = DELETE, SPLIT
        no_grammars: Any = SimpleNamespace(restrict=lambda *_: None, revise=lambda *_: None)
        layout: RowLayout = (rows or kind.rows.load())(self.canvases, FAMILIES[0])
        self.layout = layout
        self.sampler = DenoisingSampler(
            sampler, self.canvases, no_grammars, layout, False, tempered, False, num_slots * WIDTH
        )
        self.verification = Verification(
            self.canvases, sampler.sampling_states, VOCABULARY, dtype, MAX_LENGTH
        )
        self.sampler.policies.speculation = self.verification
        nothing: Any = None
        layout.bind(self.sampler, nothing, nothing)
        self.live: dict[str, tuple[int, Request, Answer]] = {}
        self._count = 0

    def add(self, request: Request, output: list[int] | None = None) -> str:
        """Admits a request, or resumes one that has had ``output``; its name."""
        name = str(self._count)
        self._count += 1
        tokens = request.prompt + (output or [])
        self.requests.add_request(name, len(request.prompt), tokens, 0, 64)
        slot = self.requests.req_id_to_index[name]
        decoding, given = request.decoding(), len(request.prompt)
        grid = self.blocks.grid(request.block_length, given, MAX_LENGTH, open_blocks=decoding.open_blocks)
        self.canvases.add(slot, decoding, grid, given)
        self.layout.add(slot, decoding, given)
        self.sampler.add_request(slot, request.params)
        self.verification.add(slot, self.canvases.decoding[slot])
        self.requests.apply_staged_writes()
        self.sampler.apply_staged_writes()
        self.canvases.apply_added(self.requests)
        self.live[name] = (slot, request, Answer())
        return name

    def remove(self, name: str) -> None:
        """Ends a request."""
        slot = self.requests.req_id_to_index[name]
        self.canvases.remove(slot)
        self.layout.remove(slot)
        self.sampler.remove(slot)
        self.requests.remove_request(name)
        del self.live[name]

    def step(self) -> Any:
        """One denoising step of all requests; what the sampler returned."""
        slots = np.array([slot for slot, _, _ in self.live.values()], dtype=np.int32)
        start, length = self.canvases.start[slots], self.canvases.length[slots]
        steps = (self.canvases.step[slots] + 1).tolist()
        counts = length.numpy()
        rows = []
        for (slot, request, _), first, count in zip(self.live.values(), start.tolist(), counts, strict=True):
            at = int(self.canvases.step[slot])
            rows += [model(request.key, first + i, at, self.dtype) for i in range(count)]
        logits = torch.stack(rows)
        before = logits.clone()
        batch: Any = SimpleNamespace(
            num_reqs=len(slots),
            req_ids=list(self.live),
            idx_mapping=torch.from_numpy(slots).long(),
            idx_mapping_np=slots,
            cu_num_logits=torch.from_numpy(np.append(0, np.cumsum(counts))).int(),
            cu_num_logits_np=np.concatenate(([0], np.cumsum(counts))),
            expanded_idx_mapping=torch.from_numpy(np.repeat(slots, counts)),
            expanded_local_pos=torch.from_numpy(
                np.concatenate([np.arange(c, dtype=np.int32) for c in counts])
            ),
            seq_lens=(start + length).to(torch.int32),
        )
        output = self.sampler(logits, batch)
        assert torch.equal(logits, before), "the raw logits were changed"
        self._emit(output, steps)
        return output

    def run(self, requests: list[Request], num_tokens: int) -> list[Answer]:
        """Runs requests in one batch until each has so many tokens."""
        names = [self.add(request) for request in requests]
        answer = [self.live[name][2] for name in names]
        for _ in range(40 * num_tokens):
            for name in list(self.live):
                if len(self.live[name][2].tokens) >= num_tokens:
                    self.remove(name)
            if not self.live:
                return answer
            self.step()
        raise AssertionError("a block never unmasked")

    def _emit(self, output: Any, steps: list[int]) -> None:
        """What the runner and the scheduler do with a step's output.

        Args:
            output: The sampler's.
            steps: Steps that each request has made on its block.
        """
        lists: Any = output.logprobs_tensors.tolists() if output.logprobs_tensors else None
        bins = self.sampler.penalties_state.output_bin_counts
        for i, (slot, request, answer) in enumerate(self.live.values()):
            count = int(output.num_sampled[i])
            tokens = output.sampled_token_ids[i, :count].tolist()
            length = int(self.requests.total_len.gpu[slot])
            self.requests.all_token_ids.gpu[slot, length : length + count] = torch.tensor(tokens)
            self.requests.total_len.gpu[slot] += count
            for token in tokens:
                bins[slot, token] += 1
            answer.tokens += tokens
            if count and request.params.num_logprobs is not None:
                part = lists.slice_request(i, count)
                answer.logprobs += zip(
                    part.logprob_token_ids.tolist(),
                    part.logprobs.tolist(),
                    part.sampled_token_ranks.tolist(),
                    strict=True,
                )
            if output.unmask_trace is None:
                continue
            answer.steps += (output.unmask_trace[i, :count, 0].int() + steps[i]).tolist()
            answer.confidence += output.unmask_trace[i, :count, 1].tolist()
            answer.entropies += output.unmask_trace[i, :count, 2].tolist()
