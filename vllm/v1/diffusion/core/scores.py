# SPDX-License-Identifier: Apache-2.0
"""Requests whose prompt is scored before they are answered.

Such a request is two in a row, with one object and one number. At first its prompt is what comes before the
targets, and the targets are its answer. The worker writes them and says how probable they were. Then the
request becomes what the client has sent: it is preempted, and taken up again with its own prompt. So the
answer is the same as without scores, whatever the request asks for. Where the estimator samples, the request
is taken up again for each sample before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vllm.sampling_params import SamplingParams
from vllm.v1.diffusion.message.report import Likelihood
from vllm.v1.diffusion.message.scores import Targets
from vllm.v1.diffusion.request.likelihood import Sampling, sampled
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput
from vllm.v1.request import Request


@dataclass
class Scoring:
    """A request whose prompt is being scored.

    Attributes:
        targets: What is scored.
        prompt: The request's own prompt.
        params: Its own parameters.
        parts: Log probabilities of the targets that have been written, block by block.
        samples: What the samples have said; None where the estimator takes none.
    """

    targets: Targets
    prompt: list[int]
    params: SamplingParams
    parts: list[LogprobsLists] = field(default_factory=list)
    samples: Samples | None = None

    @classmethod
    def begin(cls, request: Request, targets: Targets, sampling: Sampling | None) -> Scoring:
        """Makes targets a request's answer.

        Args:
            request: The request, changed.
            targets: The last tokens of its prompt.
            sampling: How they are sampled; None where they are not.
        """
        params, prompt = request.sampling_params, request.prompt_token_ids
        assert params is not None and prompt is not None
        scoring = cls(targets, list(prompt), params)
        if sampling is not None:
            scoring.samples = Samples(sampling, len(targets.ids))
        scoring._write(request)
        return scoring

    def _write(self, request: Request) -> None:
        asked = SamplingParams(
            temperature=0.0,
            max_tokens=len(self.targets.ids),
            logprobs=0 if self.samples else self.params.prompt_logprobs,
            ignore_eos=True,
            detokenize=False,
        )
        _become(request, self.prompt[: len(self.prompt) - len(self.targets.ids)], asked)

    def take(self, request: Request, tokens: list[int], output: ModelRunnerOutput | None) -> None:
        """Takes what a step has emitted of the targets.

        Args:
            request: The request, which is given the tokens.
            tokens: The tokens; masks, behind the last target.
            output: The step's output.
        """
        tokens = tokens[: len(self.targets.ids) - request.num_output_tokens]
        if not tokens:
            return
        assert output is not None and output.logprobs is not None
        index = output.req_id_to_index[request.request_id]
        said = output.logprobs.slice_request(index, len(tokens))
        # A copy of what was asked for: the step's tables hold all requests, as wide as the widest.
        most = 0 if self.samples else self.params.prompt_logprobs
        columns = None if most is None or most < 0 else 1 + most
        ids, values = said.logprob_token_ids[:, :columns].copy(), said.logprobs[:, :columns].copy()
        self.parts.append(LogprobsLists(ids, values, said.sampled_token_ranks.copy()))
        request.append_output_token_ids(tokens)

    def is_done(self, request: Request) -> bool:
        """Whether all targets are written."""
        return request.num_output_tokens >= len(self.targets.ids)

    def goes_on(self, request: Request) -> bool:
        """Whether the estimator takes another sample, which then begins.

        Args:
            request: The request, all of whose targets are written; changed.
        """
        if self.samples is None:
            return False
        self.samples.take(self.targets, self.parts)
        self.parts = []
        if self.samples.taken < self.samples.sampling.samples:
            self.targets = sampled(self.targets, self.samples.sampling.seed, self.samples.taken)
            self._write(request)
            return True
        self.parts = [self.samples.means(self.targets.ids)]
        return False

    def end(self, request: Request) -> None:
        """Makes the request what the client has sent, but for the log probabilities of its prompt.

        Args:
            request: The request, changed.
        """
        _become(request, self.prompt, unscored(self.params))
        request.prefill_stats = PrefillStats()

    def likelihood(self, steps: int) -> Likelihood:
        """What the request's report says of it.

        Args:
            steps: Denoising steps that were made.
        """
        begin = len(self.prompt) - len(self.targets.ids)
        sampling = self.samples.sampling if self.samples else ()
        return Likelihood(self.targets.estimator, begin, steps, *sampling)


class Samples:
    """Sums over the samples of a request's targets, in float64."""

    def __init__(self, sampling: Sampling, length: int) -> None:
        """Begins with none.

        Args:
            sampling: How many there will be.
            length: The number of targets.
        """
        self.sampling = sampling
        self.taken = 0
        self._sums = np.zeros(length)
        self._ranks = np.zeros(length, dtype=np.int64)

    def take(self, targets: Targets, parts: Sequence[LogprobsLists]) -> None:
        """Adds one sample.

        Args:
            targets: The targets, of which the sample masked some.
            parts: What the worker said of all of them, block by block.
        """
        assert targets.hidden is not None
        hidden = list(targets.hidden)
        values = np.concatenate([part.logprobs[:, 0] for part in parts]).astype(np.float64)
        ranks = np.concatenate([part.sampled_token_ranks for part in parts])
        # Divided by the share of the targets that are masked.
        self._sums[hidden] += values[hidden] * (len(values) / len(hidden))
        self._ranks[hidden] = np.maximum(self._ranks[hidden], ranks[hidden])
        self.taken += 1

    def means(self, ids: Sequence[int]) -> LogprobsLists:
        """Each token's mean, which sum up to the estimate, and the worst rank of its samples, 0 for none.

        Args:
            ids: The targets.
        """
        values = (self._sums / self.taken).astype(np.float32)
        return LogprobsLists(np.array(ids)[:, None], values[:, None], self._ranks)


def unscored(params: SamplingParams) -> SamplingParams:
    """Parameters of a request as they are where it asks for no log probabilities of its prompt."""
    params = params.clone()
    params.prompt_logprobs = None
    params.skip_reading_prefix_cache = None  # Upstream's own, of one that asks for them.
    return params


def _become(request: Request, prompt: list[int], params: SamplingParams) -> None:
    """Gives a request another prompt and other parameters, and takes its output away."""
    assert params.max_tokens is not None
    request.prompt_token_ids = list(prompt)
    request.num_prompt_tokens = len(prompt)
    request._output_token_ids.clear()
    request._all_token_ids[:] = prompt
    request.sampling_params = params
    request.max_tokens = params.max_tokens
    request.skip_reading_prefix_cache = bool(params.skip_reading_prefix_cache)
    request.block_hashes.clear()
    request.update_block_hashes()
