# SPDX-License-Identifier: Apache-2.0
"""What ``vllm diffuse`` does."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from vllm.v1.diffusion.cli.canvas_view import CanvasView, EmittedBlock
from vllm.v1.diffusion.cli.describe import describe
from vllm.v1.diffusion.cli.engine import Engine, UsageError
from vllm.v1.diffusion.cli.progress import progress
from vllm.v1.diffusion.cli.quiet import EngineLog, quiet
from vllm.v1.diffusion.cli.trace_page import TracedRequest, TraceFile
from vllm.v1.diffusion.demo.puzzles import TASKS, Puzzle, make_puzzle
from vllm.v1.diffusion.request.template import split_prompt

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput

USAGE_STATUS, INTERRUPTED_STATUS = 2, 130
_DEMO_PUZZLES = 8


@dataclass
class Result:
    """A finished prompt.

    Attributes:
        steps: Denoising steps, the forwards that the answer took.
        trace: For every token the step that unmasked it and its probability then.
        blocks: Tokens of each block that finished, in order.
        right: Whether the answer is right, where that can be checked.
    """

    prompt: str
    text: str
    token_ids: list[int]
    finish_reason: str
    steps: int
    trace: list[tuple[int, float]]
    blocks: list[int]
    right: bool | None = None

    @classmethod
    def of(cls, output: RequestOutput, prompt: str, blocks: list[int], puzzle: Puzzle | None) -> Result:
        """Reads a finished request."""
        completion = output.outputs[0]
        assert completion.diffusion is not None
        return cls(
            prompt,
            completion.text,
            list(completion.token_ids),
            completion.finish_reason or "",
            completion.diffusion.steps,
            completion.diffusion.trace or [],
            blocks,
            puzzle.is_right(completion.text) if puzzle else None,
        )

    @property
    def note(self) -> str:
        """What is said behind the answer."""
        rate = f"{len(self.token_ids) / max(self.steps, 1):.1f} tokens per forward"
        if self.right is None:
            return f"  [{rate}]"
        return f"  [{'right' if self.right else 'WRONG'}, {rate}]"


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand.

    Returns:
        The exit status: 0; 1 if an answer of the demo is wrong; 2 if the arguments,
        the model or a prompt cannot be used or the engine fails; 130 after Ctrl-C.
    """
    log: EngineLog | None = None
    engine: Engine | None = None
    try:
        if args.describe is not None:
            with quiet(not args.verbose) as (log, _):
                text = describe(args)
            print(text)
            return 0
        _place_infill(args)
        trace = TraceFile(args.trace) if args.trace else None
        with quiet(not args.verbose) as (log, screen):  # noqa: SIM117
            with progress("starting the engine", screen):
                engine = Engine(args)
        return _act(engine, args, trace)
    except KeyboardInterrupt:
        return INTERRUPTED_STATUS
    except BrokenPipeError:
        # Who reads our output has gone: say nothing, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if args.verbose:
            raise
        print(f"vllm diffuse: error: {_explain(error, log)}", file=sys.stderr)
        return USAGE_STATUS
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if engine:
            with quiet(not args.verbose):
                engine.shutdown()


def _place_infill(args: argparse.Namespace) -> None:
    """Without a prompt, a template's text before its first hole is the prompt."""
    if args.infill is None:
        return
    if args.demo is not None:
        raise UsageError("--infill and --demo exclude each other.")
    if not args.prompt and not args.interactive:
        prompt, args.infill = split_prompt(args.infill)
        args.prompt = [prompt]
        if not prompt:
            raise UsageError("--infill: without --prompt, some text must come before the first hole.")


def _act(engine: Engine, args: argparse.Namespace, trace: TraceFile | None) -> int:
    if args.interactive:
        return _interactive(engine, args, trace)
    if args.prompt:
        _print_rate(*_generate(engine, args.prompt, args, trace), args)
        return 0
    return _demo(engine, args, trace)


def _demo(engine: Engine, args: argparse.Namespace, trace: TraceFile | None) -> int:
    rng = random.Random(args.seed or 0)
    tasks = list(TASKS)
    count = _DEMO_PUZZLES if args.demo is None else args.demo
    if count < 1:
        raise UsageError(f"--demo {count}: must be at least 1.")
    puzzles = [make_puzzle(tasks[i % len(tasks)], rng) for i in range(count)]
    # Once before: a process's first steps allocate what later ones reuse.
    for _ in engine.stream(["add 1+1="]):
        pass
    results, seconds = _generate(engine, [p.prompt for p in puzzles], args, trace, puzzles)
    right = sum(bool(r.right) for r in results)
    if not args.json:
        print(f"{right} of {count} answers are right.")
    _print_rate(results, seconds, args)
    return 0 if right == count else 1


def _interactive(engine: Engine, args: argparse.Namespace, trace: TraceFile | None) -> int:
    tty = sys.stdin.isatty()
    if tty:
        # Importing it gives input() line editing and a history.
        import readline  # noqa: F401
    while True:
        try:
            line = input("> " if tty else "")
        except EOFError:
            if tty:
                print()
            return 0
        if not line:
            continue
        try:
            _generate(engine, [line], args, trace)
        except UsageError as error:
            print(f"vllm diffuse: error: {_explain(error, None)}", file=sys.stderr)


def _generate(
    engine: Engine,
    prompts: list[str],
    args: argparse.Namespace,
    trace: TraceFile | None,
    puzzles: list[Puzzle] | None = None,
) -> tuple[list[Result], float]:
    """Runs prompts in one batch, shows them as they come and adds them to the trace.

    Returns:
        The results, in the order of the prompts, and the seconds until the last.
    """
    live = not args.json and sys.stdout.isatty()
    view = CanvasView(prompts, sys.stdout) if live else None
    results: dict[int, Result] = {}
    blocks: list[list[int]] = [[] for _ in prompts]
    printed, drawn = 0, False
    begun = time.perf_counter()
    try:
        for outputs in engine.stream(prompts):
            unmasked = []
            for index, output in outputs:
                seen = sum(blocks[index])
                unmasked.append(_emitted_block(engine, index, output, seen))
                if length := len(output.outputs[0].token_ids) - seen:
                    blocks[index].append(length)
                if output.finished:
                    puzzle = puzzles[index] if puzzles else None
                    result = Result.of(output, prompts[index], blocks[index], puzzle)
                    results[index] = result
                    unmasked.append(EmittedBlock(index, [], [], (result.text, result.note)))
            if view:
                view.show(unmasked)
            while not view and printed in results:  # in the order of the prompts
                _print(results[printed], args)
                printed += 1
        seconds = time.perf_counter() - begun
        drawn = True
    finally:
        if view:
            view.close(at_once=not drawn)
    finished = [results[i] for i in range(len(prompts))]
    if trace:
        trace.add([_traced(engine, result) for result in finished], engine.description)
    return finished, seconds


def _traced(engine: Engine, result: Result) -> TracedRequest:
    verdict = "" if result.right is None else ", right" if result.right else ", WRONG"
    return TracedRequest(
        prompt=result.prompt,
        pieces=engine.pieces(result.token_ids),
        token_ids=result.token_ids,
        trace=result.trace,
        blocks=result.blocks,
        steps=result.steps,
        end=result.finish_reason + verdict,
    )


def _emitted_block(engine: Engine, index: int, output: RequestOutput, seen: int) -> EmittedBlock:
    completion = output.outputs[0]
    assert completion.diffusion is not None
    return EmittedBlock(
        index,
        ["" if p.special else p.text for p in engine.pieces(completion.token_ids)[seen:]],
        [step for step, _ in (completion.diffusion.trace or ())[seen:]],
    )


def _print(result: Result, args: argparse.Namespace) -> None:
    if args.json:
        values = {k: v for k, v in asdict(result).items() if v is not None}
        print(json.dumps(values), flush=True)
    else:
        print(f"{result.prompt}{result.text}{result.note}", flush=True)


def _print_rate(results: list[Result], seconds: float, args: argparse.Namespace) -> None:
    if args.json:
        return
    tokens = sum(len(r.token_ids) for r in results)
    steps = sum(r.steps for r in results)
    print(
        f"{tokens} tokens in {seconds:.2f} s: {tokens / seconds:.0f} tokens per "
        f"second, {tokens / max(steps, 1):.1f} tokens per forward."
    )


def _explain(error: Exception, log: EngineLog | None) -> str:
    """One line that says what is wrong."""
    from vllm.exceptions import VLLMClientError

    message = str(error)
    details = getattr(error, "errors", None)
    if callable(details):  # pydantic's message has many lines
        first = details()[0]
        where = ".".join(map(str, first["loc"][:1]))
        message = first["msg"].removeprefix("Value error, ")
        message = f"{where}: {message}" if where else message
    elif isinstance(error, VLLMClientError):
        message = message.split(" (parameter=")[0]
    elif not isinstance(error, ValueError | OSError):
        # The engine's own process has said why.
        message = (log.last_error() if log else None) or message
        return f"{_first_line(message, error)} (--verbose shows the engine's log)"
    return _first_line(message, error)


def _first_line(message: str, error: Exception) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
