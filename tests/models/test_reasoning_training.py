"""A reasoning model's training in miniature, and the noise of answers longer than the noisy copy."""

import json
from pathlib import Path

import pytest
import torch
from tinydlm import reason
from tinydlm.checkpoint import load
from tinydlm.noise import block_diffusion
from tinydlm.reasoning import TASKS, held_out
from tinydlm.tasks import Batch, Sampler
from tinydlm.vocab import MASK


def test_a_short_training_learns_and_writes_log_and_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = reason.learn_tokenizer
    monkeypatch.setattr(reason, "learn_tokenizer", lambda: learn(problems=300))
    monkeypatch.setattr(reason, "VOCABULARY", 600)
    shape = "--hidden 64 --ffn 64 --layers 1 --heads 2 --kv-heads 2 --compile no"
    run = "--device cpu --steps 30 --batch 12 --warmup 5 --log-every 10 --processes 2 --report-minutes 0"
    out, log = tmp_path / "out", tmp_path / "log.jsonl"
    reason.main([*shape.split(), *run.split(), "--out", str(out), "--log", str(log)])
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 3 and losses[-1] < 0.85 * losses[0]
    network, tokenizer = load(out), reason.read_tokenizer(out)
    assert network.config.vocab_size == len(tokenizer) == 600
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    scores = reason.score_all(network, tokenizer, 1, reason.Decoding("static", 1))
    assert set(scores) == set(TASKS)


def test_a_long_answer_has_a_random_run_of_its_blocks() -> None:
    sampler = Sampler(1, torch.device("cpu"))
    count, block, window = 200, 32, 96
    tokens = torch.arange(224).expand(count, -1) + 10
    prompt = torch.full((count,), 20)
    answer = torch.where(torch.arange(count) % 2 == 0, 100, 30)
    batch = Batch(tokens, prompt, answer, torch.ones(count, dtype=torch.bool))
    example = block_diffusion(batch, sampler, block, window, 128)
    assert example.tokens.shape == (count, 128 - block + window)
    first = example.positions[:, -window]
    assert set(first[::2].tolist()) == {0, 32}  # Four blocks, of which three neighbours are shown.
    assert set(first[1::2].tolist()) == {0}
    hidden = example.tokens == MASK
    end = (prompt + answer) // block * block + block
    inside = (example.positions >= 20) & (example.positions < end[:, None])
    assert not bool((hidden & ~inside).any())
    assert torch.equal(example.targets, example.positions[:, -window:] + 10)


def test_the_checkpoint_that_judges() -> None:
    """Its folder is complete and small enough for the repository, and solves Sudokus that it never saw."""
    folder = Path(__file__).parents[2] / "models" / "reasoner"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 16_000_000
    network, tokenizer = load(folder), reason.read_tokenizer(folder)
    assert network.config.block_size == 32
    puzzles = held_out("sudoku", 6, 31)
    accuracy, _ = reason.score(network, tokenizer, puzzles, reason.Decoding("static", 4))
    assert accuracy >= 0.8
