"""The problems: generators of training data against checkers that share no code with them."""

import collections
import random

import pytest
import torch
from tinydlm import problems
from tinydlm.problems import TASKS, all_grids, check, held_out, is_reserved
from tinydlm.tasks import Batch, Sampler
from tinydlm.vocab import EOS, decode

LENGTH = 64


def draw(count: int, seed: int = 0) -> Batch:
    return Sampler(seed, torch.device("cpu")).draw(dict.fromkeys(TASKS, count), LENGTH)


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    batch = draw(1500)
    texts = []
    for row, prompt_len, answer_len in zip(
        batch.tokens.tolist(), batch.prompt_len.tolist(), batch.answer_len.tolist(), strict=True
    ):
        end = prompt_len + answer_len
        assert set(row[end:]) == {EOS}
        texts.append((decode(row[:prompt_len]), decode(row[prompt_len:end])))
    return texts


def bodies(pairs: list[tuple[str, str]], task: str) -> list[str]:
    return [prompt[len(task) + 1 : -1] for prompt, _ in pairs if prompt.startswith(task + " ")]


def cells(lines: str) -> tuple[int, ...]:
    return tuple(int(char) for char in lines.replace("/", ""))


def test_there_are_288_grids_in_order() -> None:
    grids = all_grids()
    assert len(grids) == len(set(grids)) == 288
    assert grids == sorted(grids)
    assert grids[0] == (1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1)


@pytest.mark.parametrize(
    ("prompt", "answer", "right"),
    [
        ("sudoku 1003/0300/3210/4132=", "1423/2341/3214/4132", True),
        ("sudoku 1003/0300/3210/4132=", "1423/2341/3214/4123", False),  # column twice
        ("sudoku 1003/0300/3210/4132=", "1423/2341/3214/4132/", False),
        ("sudoku 1003/0300/3210/4132=", "1423/2341/3214", False),
        ("sudoku 1003/0300/3210/4132=", "1423/2341/3214/413x", False),
        ("sudoku 1003/0300/3210/4132=", "1243/4312/3421/2134", False),  # a given changed
        ("sudoku 0000/0000/0000/0000=", "1423/2341/3214/4132", True),  # any completion
        ("sudoku 1234/2341/3412/4123=", "1234/2341/3412/4123", False),  # boxes
        ("add 482+917=", "1399", True),
        ("add 482+917=", "01399", False),
        ("add 0+0=", "0", True),
        ("sort 53914=", "13459", True),
        ("sort 53914=", "1345", False),
        ("sort 331=", "133", True),
        ("reverse stone=", "enots", True),
        ("reverse stone=", "stone", False),
    ],
)
def test_checker(prompt: str, answer: str, right: bool) -> None:
    assert check(prompt, answer) is right


@pytest.mark.parametrize("prompt", ["add 1+2", "divide 4/2=", "sudoku 1234=", "hello"])
def test_checker_refuses_what_is_no_prompt(prompt: str) -> None:
    with pytest.raises(ValueError):
        check(prompt, "1")


def test_every_training_answer_is_right(pairs: list[tuple[str, str]]) -> None:
    assert [pair for pair in pairs if not check(*pair)] == []


def test_sudoku_targets_are_the_first_solution(pairs: list[tuple[str, str]]) -> None:
    grids = all_grids()
    puzzles = [(cells(p[7:-1]), cells(a)) for p, a in pairs if p.startswith("sudoku")]
    ambiguous = 0
    for puzzle, solution in puzzles[:400]:
        fits = [g for g in grids if all(a in (0, b) for a, b in zip(puzzle, g, strict=True))]
        assert solution == min(fits)
        ambiguous += len(fits) > 1
    assert ambiguous > 20
    assert {puzzle.count(0) for puzzle, _ in puzzles} == set(range(4, 13))


def test_edge_cases_are_drawn(pairs: list[tuple[str, str]]) -> None:
    for task in ("sort", "reverse"):
        assert {len(body) for body in bodies(pairs, task)} == set(range(1, 13))
        assert any(len(body) > 4 and len(set(body)) == 1 for body in bodies(pairs, task))
    assert set("".join(bodies(pairs, "reverse"))) == set("abcdefghijklmnopqrstuvwxyz")
    sums = [tuple(body.split("+")) for body in bodies(pairs, "add")]
    assert {(len(a), len(b)) for a, b in sums} == {(i, j) for i in range(1, 5) for j in range(1, 5)}
    assert all(a == str(int(a)) and b == str(int(b)) for a, b in sums)
    assert any(a == "0" for a, _ in sums)
    assert any(b == "0" for _, b in sums)
    assert any(a == b and len(a) > 2 for a, b in sums)
    carries = collections.Counter(int(a) + int(b) in (999, 1000, 9999, 10000) for a, b in sums)
    assert carries[True] > 20


def test_reserved_puzzles_are_not_trained() -> None:
    batch = draw(3000, seed=3)
    for row, trainable in zip(batch.tokens[:3000].tolist(), batch.trainable[:3000], strict=True):
        assert bool(trainable) != is_reserved(cells(decode(row)[7:26]))
    assert 5 < int((~batch.trainable).sum()) < 100
    reserved = held_out("sudoku", 20, 5, reserved_only=True)
    assert all(is_reserved(cells(prompt[7:-1])) for prompt in reserved)


def test_draws_follow_the_seed() -> None:
    assert torch.equal(draw(50, 7).tokens, draw(50, 7).tokens)
    assert not torch.equal(draw(50, 7).tokens, draw(50, 8).tokens)
    assert held_out("add", 5, 1) == held_out("add", 5, 1) != held_out("add", 5, 2)


def test_held_out_prompts_keep_to_the_formats() -> None:
    for task in TASKS:
        for prompt in held_out(task, 50, 9):
            assert len(prompt) <= 27
            assert not check(prompt, "?")
    empties = {p.count("0") for p in held_out("sudoku", 300, 9)}
    assert min(empties) >= problems.MIN_EMPTY
    assert max(empties) <= problems.MAX_EMPTY
    assert problems.sample("sort", random.Random(0), []).startswith("sort ")
