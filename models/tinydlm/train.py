"""Trains one bundled model: ``python -m tinydlm.train --family sdar --out FOLDER --log FILE``.

Problems are drawn anew for every step. AdamW with a linear warm-up and a cosine decay to zero; what
is saved is the exponential moving average of the weights, rounded to bfloat16.
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .checkpoint import load, save
from .decoding import Decoding
from .evaluate import score_all
from .network import Network, NetworkConfig
from .noise import Example, block_diffusion, full_diffusion
from .tasks import Sampler

SHARES = {"sudoku": 0.4, "add": 0.2, "sort": 0.2, "reverse": 0.2}
"""Share of each task in a batch; Sudoku is the hardest."""
EVALUATION_SEED = 77
"""Held-out problems of the log; the published tables use another seed."""


def loss_of(
    network: Network,
    tokens: Tensor,
    positions: Tensor,
    visible: Tensor,
    targets: Tensor,
    weight: Tensor,
) -> Tensor:
    """Mean cross-entropy over hidden tokens; the arguments are the fields of ``Example``."""
    logits = network(tokens, positions, visible, targets.shape[1])
    losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return (losses * weight.flatten()).sum() / weight.sum()


@dataclass(frozen=True)
class Course:
    """What a model is trained on.

    Attributes:
        draw: makes the example of a step; it runs under autocast.
        evaluate: what the log says of the averaged network now and then.
        save: writes the averaged network.
    """

    draw: Callable[[int], Example]
    evaluate: Callable[[Network], dict[str, Any]]
    save: Callable[[Network], None]


def bundled_course(config: NetworkConfig, options: argparse.Namespace) -> Course:
    """The course of a bundled model; every fifth ``llada`` batch has room for long canvases."""
    sampler = Sampler(options.seed, torch.device(options.device))
    shares = {task: round(options.batch * share) for task, share in SHARES.items()}

    def draw(step: int) -> Example:
        if config.family == "sdar":
            return block_diffusion(sampler.draw(shares, 64), sampler, config.block_size)
        return full_diffusion(sampler.draw(shares, 96 if step % 5 == 4 else 64), sampler)

    return Course(draw, lambda network: evaluate(network, 200), lambda network: save(network, options.out))


def learning_rate(step: int, options: argparse.Namespace) -> float:
    """Linear warm-up, then half a cosine."""
    if step < options.warmup:
        return float(options.lr * (step + 1) / options.warmup)
    progress = (step - options.warmup) / max(1, options.steps - options.warmup)
    return float(options.lr * 0.5 * (1 + math.cos(math.pi * progress)))


def evaluate(network: Network, count: int) -> dict[str, Any]:
    """Accuracy and tokens per forward of every task with the default decoding."""
    scores = score_all(network, count, EVALUATION_SEED, Decoding(), reserved_only=True)
    return {s.task: [round(s.accuracy, 4), round(s.tokens_per_forward, 2)] for s in scores}


def train(config: NetworkConfig, options: argparse.Namespace, course: Course) -> Network:
    """Runs the training and returns the averaged network."""
    device = torch.device(options.device)
    torch.manual_seed(options.seed)
    network, average = Network(config).to(device), Network(config).to(device).eval()
    average.load_state_dict(network.state_dict())
    weights: list[Tensor] = list(network.parameters())
    averages: list[Tensor] = list(average.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [w for w in weights if w.dim() == 2]},
        {"params": [w for w in weights if w.dim() != 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups,
        lr=options.lr,
        betas=(0.9, 0.98),
        weight_decay=options.decay,
        fused=device.type == "cuda",
    )
    whole = loss_of
    if options.compile == "whole":
        whole = torch.compile(loss_of, dynamic=False)
    elif options.compile == "layers":  # One compilation serves every layer, so that it takes seconds.
        for layer in network.layers:
            layer.compile(dynamic=False)
    log = options.log.open("a")

    def record(**fields: Any) -> None:
        print(json.dumps(fields), flush=True)
        log.write(json.dumps(fields) + "\n")
        log.flush()

    card = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    record(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        config=asdict(config),
        options={key: str(value) for key, value in vars(options).items() if key not in ("out", "log")},
        parameters=sum(w.numel() for w in weights),
        hardware=card,
        torch=torch.__version__,
        python=platform.python_version(),
    )
    begin = time.perf_counter()
    recent = torch.zeros((), device=device)
    step = positions = 0
    marked, waited = begin, 0.0
    while step < options.steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            asked = time.perf_counter()
            example = course.draw(step)
            waited += time.perf_counter() - asked
            loss = whole(
                network,
                example.tokens,
                example.positions,
                example.visible,
                example.targets,
                example.weight,
            )
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - min(options.ema, (step + 1) / (step + 10)))
            recent += loss.detach()
        step += 1
        positions += example.tokens.numel()
        if step % options.log_every == 0:
            mean, recent = float(recent) / options.log_every, torch.zeros((), device=device)
            now = time.perf_counter()
            pace = (now - marked) / options.log_every
            record(
                step=step,
                loss=round(mean, 5),
                lr=round(learning_rate(step, options), 7),
                seconds=round(now - begin, 1),
                milliseconds_a_step=round(1000 * pace, 2),
                positions_a_second=round(positions / (now - marked)),
                drawing=round(waited / (now - marked), 3),
            )
            if options.minutes and step > options.log_every:
                left = 60 * options.minutes - (now - begin)
                options.steps = step + max(0, int(left / pace))
            if step % options.eval_every == 0 and step < options.steps:
                course.save(average)
                record(step=step, steps=options.steps, averaged=course.evaluate(average))
            marked, positions, waited = time.perf_counter(), 0, 0.0
    return average


def main() -> None:
    """Parses options, trains, saves, and evaluates what was saved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=("sdar", "llada"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--log", type=Path, required=True, help="log file to append to, JSON lines")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--minutes", type=float, default=0, help="set --steps from the speed measured")
    parser.add_argument("--batch", type=int, default=2000)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--decay", type=float, default=0.02)
    parser.add_argument("--warmup", type=int, default=500)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--block", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--ffn", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=32)
    parser.add_argument("--log-every", type=int, default=200)
    parser.add_argument("--eval-every", type=int, default=4000)
    options = parser.parse_args()
    config = NetworkConfig(
        family=options.family,
        block_size=options.block,
        hidden_size=options.hidden,
        ffn_size=options.ffn,
        layers=options.layers,
        heads=options.heads,
        kv_heads=options.kv_heads,
        head_dim=options.head_dim,
        norm_eps=1e-6 if options.family == "sdar" else 1e-5,
    )
    options.log.parent.mkdir(parents=True, exist_ok=True)
    options.compile = "whole" if options.device == "cuda" else "no"
    save(train(config, options, bundled_course(config, options)), options.out)
    final = evaluate(load(options.out, options.device), 500)
    print(json.dumps({"saved": final}))
    with options.log.open("a") as log:
        log.write(json.dumps({"saved": final}) + "\n")


if __name__ == "__main__":
    main()
