# SPDX-License-Identifier: Apache-2.0
"""What ``vllm diffuse`` does."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm.v1.diffusion.bundled import bundled_path
from vllm.v1.diffusion.cli.canvas_view import CanvasLine, CanvasView
from vllm.v1.diffusion.cli.progress import progress
from vllm.v1.diffusion.params import DiffusionParams
from vllm.v1.diffusion.puzzles import TASKS, Puzzle, make_puzzle

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.llm_engine import LLMEngine


@dataclass
class Result:
    """A finished prompt."""

    prompt: str
    text: str
    token_ids: list[int]
    finish_reason: str
    steps: int
    trace: list[tuple[int, float]]

    @property
    def tokens_per_forward(self) -> float:
        """Generated tokens a denoising step."""
        return len(self.token_ids) / max(self.steps, 1)


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand.

    Returns:
        The exit status: 0, or 1 if an answer of the demo is wrong, or 2 if the
        arguments or the model cannot be used.
    """
    try:
        if args.model and args.bundled:
            raise ValueError("--model and --bundled exclude each other.")
        with progress("starting the engine"):
            engine = _start(args)
        params = _sampling_params(engine, args)
        if args.interactive:
            return _interactive(engine, params, args)
        if args.prompt:
            results = _generate(engine, args.prompt, params, args)
            _print_rate(results, args)
            return 0
        return _demo(engine, params, args)
    except ValueError as error:
        print(f"vllm diffuse: error: {error}", file=sys.stderr)
        return 2


def _start(args: argparse.Namespace) -> LLMEngine:
    if not args.verbose:
        os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
        os.environ.setdefault("TQDM_DISABLE", "1")
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    return LLMEngine.from_engine_args(
        EngineArgs(
            model=args.model or bundled_path(args.bundled or "sdar"),
            dtype=args.dtype,
            max_model_len=args.max_model_len,
            tensor_parallel_size=args.tensor_parallel_size,
            enforce_eager=not args.compile,
            disable_log_stats=True,
        )
    )


def _sampling_params(engine: LLMEngine, args: argparse.Namespace) -> SamplingParams:
    from vllm.sampling_params import SamplingParams

    values = dict(engine.model_config.get_diff_sampling_param())
    values["max_tokens"] = args.max_tokens
    for name in ("temperature", "top_k", "top_p", "seed"):
        if getattr(args, name) is not None:
            values[name] = getattr(args, name)
    params = DiffusionParams(
        algorithm=args.algorithm,
        steps=args.steps,
        block_length=args.block_length,
        threshold=args.threshold,
        entropy_bound=args.entropy_bound,
        trace=True,
    )
    return SamplingParams(**values, extra_args=params.to_extra_args())


def _demo(engine: LLMEngine, params: SamplingParams, args: argparse.Namespace) -> int:
    rng = random.Random(args.seed or 0)
    tasks = list(TASKS)
    puzzles = [make_puzzle(tasks[i % len(tasks)], rng) for i in range(args.demo or 8)]
    # One first: a process's first steps allocate what later ones reuse.
    list(_stream(engine, [puzzles[0].prompt], params))
    results = _generate(engine, [p.prompt for p in puzzles], params, args, puzzles)
    right = sum(p.is_right(r.text) for p, r in zip(puzzles, results, strict=True))
    if not args.json:
        print(f"{right} of {len(puzzles)} answers are right.")
    _print_rate(results, args)
    return 0 if right == len(puzzles) else 1


def _interactive(
    engine: LLMEngine, params: SamplingParams, args: argparse.Namespace
) -> int:
    tty = sys.stdin.isatty()
    while True:
        if tty:
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return 0
        if prompt := line.rstrip("\n"):
            _generate(engine, [prompt], params, args)


def _generate(
    engine: LLMEngine,
    prompts: list[str],
    params: SamplingParams,
    args: argparse.Namespace,
    puzzles: list[Puzzle] | None = None,
) -> list[Result]:
    """Runs prompts in one batch and shows them as they come."""
    tokenizer = engine.get_tokenizer()
    view = CanvasView(
        [CanvasLine(p) for p in prompts],
        lambda token: tokenizer.decode([token], skip_special_tokens=True),
        live=not args.json and sys.stdout.isatty(),
    )
    results: list[Result | None] = [None] * len(prompts)
    begun = time.perf_counter()
    for index, output in _stream(engine, prompts, params):
        completion = output.outputs[0]
        seen = len(view.lines[index].cells)
        view.extend(
            index,
            list(completion.token_ids)[seen:],
            list(completion.unmask_trace or ())[seen:],
        )
        if output.finished:
            assert completion.spec_decode_metrics is not None
            result = Result(
                prompts[index],
                completion.text,
                list(completion.token_ids),
                completion.finish_reason or "",
                sum(completion.spec_decode_metrics.histogram),
                list(completion.unmask_trace or ()),
            )
            results[index] = result
            note = f"{result.tokens_per_forward:.1f} tokens per forward"
            if puzzles:
                right = puzzles[index].is_right(result.text)
                note = f"{'right' if right else 'WRONG'}, {note}"
            if args.json:
                print(json.dumps(vars(result)), flush=True)
            else:
                view.finish(index, result.text, f"[{note}]")
    args.seconds = time.perf_counter() - begun - view.seconds_drawing
    return [r for r in results if r is not None]


def _stream(
    engine: LLMEngine, prompts: Iterable[str], params: SamplingParams
) -> Iterator[tuple[int, RequestOutput]]:
    """Runs prompts in one batch; yields an output for every block that settles."""
    indices = {}
    for index, prompt in enumerate(prompts):
        request_id = f"diffuse-{time.monotonic_ns()}-{index}"
        indices[request_id] = index
        engine.add_request(request_id, {"prompt": prompt}, params.clone())
    while engine.has_unfinished_requests():
        for output in engine.step():
            yield indices[output.request_id], output


def _print_rate(results: list[Result], args: argparse.Namespace) -> None:
    if args.json:
        return
    tokens = sum(len(r.token_ids) for r in results)
    steps = sum(r.steps for r in results)
    print(
        f"{tokens} tokens in {args.seconds:.2f} s: {tokens / args.seconds:.0f} tokens "
        f"per second, {tokens / max(steps, 1):.1f} tokens per forward."
    )
