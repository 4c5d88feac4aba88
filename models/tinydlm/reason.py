"""Trains and measures a model that reasons: ``python -m tinydlm.reason --out FOLDER --log FILE``.

Blocks of 32, a byte-pair tokenizer learnt from the problems, and answers of one to four blocks. Problems are
made by processes beside the training. ``--evaluate-only`` measures a folder that is there.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch

from .bpe import BytePairs
from .checkpoint import load, save
from .decoding import Decoding, generate
from .feed import Feed
from .network import Network, NetworkConfig
from .noise import Example, block_diffusion
from .reasoning import TASKS, Problem, held_out, training
from .reasoning.sudoku import base_grids
from .tasks import Batch, Sampler
from .train import Course, train
from .vocab import EOS

SHARES = {"story": 0.26, "record": 0.22, "program": 0.102, "naming": 0.068, "sudoku": 0.35}
"""Share of each task in a batch, as ``models/reasoner`` was trained."""
VOCABULARY = 1024
LENGTH = 128
"""Tokens of the longest prompt with its answer and end."""
WINDOW = 96
"""Positions of a row's noisy copy: of an answer of four blocks, three neighbours at a time."""
MAX_TOKENS = 96
EVALUATION_SEED = 77


def learn_tokenizer(seed: int = 0, problems: int = 3000) -> BytePairs:
    """Learns the tokenizer from ``problems`` of each task."""
    rng = Random(f"tokenizer {seed}")
    drawn = (training(task, rng) for task in TASKS for _ in range(problems))
    return BytePairs.learn((problem.prompt + problem.answer for problem in drawn), VOCABULARY)


def read_tokenizer(folder: Path) -> BytePairs:
    """Reads a checkpoint's tokenizer."""
    return BytePairs.of(json.loads((folder / "tokenizer.json").read_text()))


def score(
    network: Network, tokenizer: BytePairs, problems: Sequence[Problem], decoding: Decoding
) -> tuple[float, float]:
    """Accuracy and tokens per forward by the reference decoding."""
    right = tokens = forwards = 0
    for start in range(0, len(problems), 250):
        part = problems[start : start + 250]
        output = generate(network, [tokenizer.encode(p.prompt) for p in part], MAX_TOKENS, decoding)
        right += sum(p.is_right(tokenizer.decode(ids)) for p, ids in zip(part, output.ids, strict=True))
        tokens += sum(ids.index(EOS) + 1 if EOS in ids else len(ids) for ids in output.ids)
        forwards += sum(output.forwards)
    return right / len(problems), tokens / forwards


def score_all(network: Network, tokenizer: BytePairs, count: int, decoding: Decoding) -> dict[str, Any]:
    """Accuracy and tokens per forward of every task on held-out problems."""
    result: dict[str, Any] = {}
    for task in TASKS:
        accuracy, speed = score(network, tokenizer, held_out(task, count, EVALUATION_SEED), decoding)
        result[task] = [round(accuracy, 4), round(speed, 2)]
    return result


def ladder(block: int) -> dict[str, Decoding]:
    """Ways of decoding, the most careful first: fixed numbers of steps, then thresholds."""
    steps = [block >> shift for shift in range(block.bit_length())]
    fixed = {f"static, {n} steps": Decoding("static", n) for n in steps}
    thresholds = (0.95, 0.9, 0.8, 0.7, 0.5, 0.3)
    return fixed | {f"dynamic, threshold {t}": Decoding("dynamic", block, t) for t in thresholds}


def course(config: NetworkConfig, tokenizer: BytePairs, feed: Feed, options: argparse.Namespace) -> Course:
    """The course of a reasoning model."""
    device = torch.device(options.device)
    sampler = Sampler(options.seed, device)
    batches: Iterator[Batch] = feed.batches(device, LENGTH + WINDOW)

    def draw(step: int) -> Example:
        return block_diffusion(next(batches), sampler, config.block_size, WINDOW, LENGTH)

    def evaluate(network: Network) -> dict[str, Any]:
        return score_all(network, tokenizer, options.count // 5, Decoding("static", config.block_size))

    return Course(draw, evaluate, lambda network: write(network, tokenizer, options.out))


def write(network: Network, tokenizer: BytePairs, folder: Path) -> None:
    """Writes the checkpoint, meant to run in bfloat16."""
    save(network, folder, tokenizer=tokenizer, compute="bfloat16")


def report(options: argparse.Namespace, begun: float) -> None:
    """Logs accuracy and tokens per forward of ``ladder``, as much as ``--report-minutes`` allow."""
    network, tokenizer = load(options.out, options.device), read_tokenizer(options.out)
    with options.log.open("a") as log:
        for name, decoding in ladder(network.config.block_size).items():
            if time.perf_counter() - begun > 60 * options.report_minutes:
                break
            line = {"decoding": name, "held_out": score_all(network, tokenizer, options.count, decoding)}
            print(json.dumps(line), flush=True)
            log.write(json.dumps(line) + "\n")
            log.flush()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--log", type=Path, required=True, help="log file to append to, JSON lines")
    parser.add_argument("--evaluate-only", action="store_true", help="measure what is in --out")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--minutes", type=float, default=0, help="set --steps from the speed measured")
    parser.add_argument("--report-minutes", type=float, default=1e9, help="start no measurement after these")
    parser.add_argument("--count", type=int, default=250, help="held-out problems of each task")
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--shares", type=json.loads, default=SHARES, help="of each task, a JSON object")
    parser.add_argument("--compile", choices=("layers", "whole", "no"), default="layers")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--decay", type=float, default=0.02)
    parser.add_argument("--warmup", type=int, default=500)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--ffn", type=int, default=768)
    parser.add_argument("--layers", type=int, default=9)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=32)
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--eval-every", type=int, default=3000)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Trains, saves, and measures what was saved."""
    begun = time.perf_counter()
    options = parse(arguments)
    options.log.parent.mkdir(parents=True, exist_ok=True)
    if not options.evaluate_only:
        base_grids(0)  # Made once, then shared with every process.
        tokenizer = learn_tokenizer()
        shares = {task: round(options.batch * share) for task, share in options.shares.items()}
        feed = Feed(tokenizer, shares, options.seed, LENGTH, options.processes)
        config = NetworkConfig(
            family="sdar",
            block_size=32,
            hidden_size=options.hidden,
            ffn_size=options.ffn,
            layers=options.layers,
            heads=options.heads,
            kv_heads=options.kv_heads,
            head_dim=options.head_dim,
            vocab_size=VOCABULARY,
        )
        try:
            write(train(config, options, course(config, tokenizer, feed, options)), tokenizer, options.out)
        finally:
            feed.close()
    report(options, begun)


if __name__ == "__main__":
    main()
