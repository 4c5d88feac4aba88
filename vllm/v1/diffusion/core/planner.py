# SPDX-License-Identifier: Apache-2.0
"""What a mode decides in the scheduler: which positions a request computes next."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vllm.platforms import current_platform
from vllm.v1.diffusion.core.plan import InFlight, RequestPlan
from vllm.v1.diffusion.modes.grid import known_tokens
from vllm.v1.diffusion.request.blocks import placed
from vllm.v1.diffusion.request.decoding import Decoding

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.diffusion.core.scheduler import DiffusionScheduler
    from vllm.v1.request import Request


_SHARE_OF_FIRST_BLOCKS = 4
"""One part in so many of a step's prompts is what steps without them may cost."""
_LEAST_ROWS, _LEAST_ROWS_ON_CPU = 256, 32
"""Rows of a step that cost as much as reading the weights does."""


class Window(NamedTuple):
    """The positions ``[begin, end)`` of one request."""

    begin: int
    end: int


class Share(NamedTuple):
    """What a step computes of one request.

    Attributes:
        end: Position behind the window.
        rows: Rows of logits, one for each canvas position from the first on; 0 if the step does
            not denoise the request.
        tokens: Positions that the step computes of the window; None for all.
    """

    end: int
    rows: int
    tokens: int | None = None


class WindowPlanner:
    """Plans the windows of a mode's requests.

    Attributes:
        lookahead: Positions behind a request's known tokens for which KV blocks are held.
        scheduler: The scheduler that asks; its budget, limits and cache manager are read.
    """

    lookahead: int

    def __init__(self, scheduler: DiffusionScheduler, served: int) -> None:
        """Makes it.

        Args:
            scheduler: The scheduler that asks.
            served: Longest block of a request.
        """
        self.scheduler = scheduler
        self.lookahead = served
        self._least_rows = _LEAST_ROWS_ON_CPU if current_platform.is_cpu() else _LEAST_ROWS
        self._spent = 0
        """Rows of the steps since prompts began to wait."""

    def admit(self, request: Request) -> None:
        """Changes what upstream reads of a request, before it is admitted."""

    def cache_salt(self, request: Request, decoding: Decoding) -> str | None:
        """What keeps a request's keys and values apart from others' of the same tokens; None for nothing.

        Of a block-causal model a prompt's depend on the block length.
        """
        scheduler = self.scheduler
        by_token = scheduler.mode.blocks.final is known_tokens
        if by_token or decoding.block_length == scheduler.diffusion_config.block_length:
            return None
        return f"diffusion_block_length={decoding.block_length}"

    def plan(self, request: Request, decoding: Decoding) -> RequestPlan:
        """Begins a request's books."""
        rule, longest, prompt_len = (
            self.scheduler.mode.blocks,
            self.scheduler.max_model_len,
            request.num_prompt_tokens,
        )
        plan = RequestPlan(*placed(decoding, rule, prompt_len, request.max_tokens, longest))
        if rule.slides or rule.open_blocks > 1:
            # Preempted, it would begin again where no request begins, and write other tokens.
            last = min(prompt_len + request.max_tokens, longest) - 1
            plan.reserved = min(plan.grid.reach(last) + self.lookahead, longest)
        return plan

    def begin_step(self, num_requests: int) -> None:
        """Begins a step, before any window is planned.

        Args:
            num_requests: Requests that run or wait.
        """

    def prompts_wait(self, rows: int, reading: int, first: bool) -> bool:
        """Whether this step is to take no prompts, so that requests finish their first block before.

        A step takes as long as its windows and its prompts together, and a first block needs several. If each
        of these carried 8192 tokens of other prompts, the block would come as late as all of those.
        Prompts wait for a quarter of their own time at most.

        Args:
            rows: Tokens of the step's windows.
            reading: Tokens that running requests have yet to read of their prompts.
            first: Whether a window belongs to a first block.
        """
        scheduler = self.scheduler
        if first and scheduler.parallel_config.pipeline_parallel_size == 1:
            budget = scheduler.max_num_scheduled_tokens
            prompts = reading
            for request in scheduler.waiting:
                if prompts >= budget:
                    break
                prompts += request.num_tokens - request.num_computed_tokens
            spent = self._spent + max(rows, self._least_rows)
            if _SHARE_OF_FIRST_BLOCKS * spent <= min(prompts, budget):
                self._spent = spent
                return True
        self._spent = 0
        return False

    def reads_prompt(self, request: Request, plan: RequestPlan) -> bool:
        """Whether a request's next window is a chunk of its prompt, of any length."""
        raise NotImplementedError

    def window(self, request: Request, plan: RequestPlan) -> Window | None:
        """The next window of a running request; None to skip the request in this step."""
        raise NotImplementedError

    def round(self, request: Request, plan: RequestPlan, end: int, output: SchedulerOutput) -> Share:
        """Rounds what upstream scheduled of a request.

        Args:
            request: The request.
            plan: Its plan.
            end: Where its positions of the step end, as scheduled.
            output: The step.
        """
        raise NotImplementedError

    def emits(self, request: Request, plan: RequestPlan, count: int) -> None:
        """Changes what upstream reads of a request, before it is given the tokens of a step.

        Args:
            request: The request.
            plan: Its plan.
            count: How many tokens.
        """

    def denoised_nothing(self, plan: RequestPlan, window: InFlight, known: int) -> bool:
        """Whether the block of a window had finished before the window ran.

        Args:
            plan: The request's plan.
            window: The window.
            known: Tokens known by the outputs before its own.
        """
        return window.end <= plan.grid.begin(known)

    def has_answered(self, request: Request, plan: RequestPlan) -> bool:
        """Whether the tokens that have just been emitted end an answer that has room for more."""
        return False

    def is_anchor(self, plan: RequestPlan, window: InFlight, known: int) -> bool:
        """Whether a window made the first token of a block and nothing else; arguments likewise."""
        return False
