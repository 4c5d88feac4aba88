"""The problems with several steps: their answers are right, and other answers are not."""

import json
import random
import re
from itertools import pairwise
from random import Random

import pytest
from tinydlm.bpe import BytePairs
from tinydlm.feed import pack
from tinydlm.reasoning import TASKS, draw, held_out, training
from tinydlm.reasoning.problem import Problem
from tinydlm.reasoning.programs import fresh
from tinydlm.reasoning.records import draw as draw_order
from tinydlm.reasoning.records import write
from tinydlm.reasoning.stories import WORDINGS, write_steps
from tinydlm.reasoning.stories import draw as draw_story
from tinydlm.reasoning.sudoku import is_solved, read, search, singles
from tinydlm.vocab import EOS


def problems(task: str, count: int = 60) -> list[Problem]:
    rng = Random(f"test {task}")
    return [draw(task, rng, reserved=False) for _ in range(count)]


@pytest.mark.parametrize("task", TASKS)
def test_an_answer_is_right_and_a_changed_one_is_not(task: str) -> None:
    rng = random.Random(3)
    for problem in problems(task):
        assert problem.is_right(problem.answer)
        assert not problem.is_right("") and not problem.is_right(problem.answer + ".")
        at = rng.choice([m.start() for m in re.finditer(r"[0-9]", problem.answer)] or [0])
        digit = problem.answer[at]
        other = str((int(digit) + 1) % 10) if digit.isdigit() else "?"
        assert not problem.is_right(problem.answer[:at] + other + problem.answer[at + 1 :]), problem


@pytest.mark.parametrize("task", TASKS)
def test_another_problems_answer_is_wrong(task: str) -> None:
    some = problems(task)
    wrong = [not a.is_right(b.answer) for a, b in pairwise(some)]
    assert all(wrong)


def test_a_story_has_to_keep_to_its_wording() -> None:
    rng = Random(5)
    for _ in range(50):
        story = draw_story(rng)
        result = story.steps[-1][3]
        for closing in story.closings(result):
            for order in story.orders:
                written = [write_steps(order, wording) for wording in WORDINGS]
                assert all(story.is_right(f"{text} {closing}") for text in written)
                mixed = written[0].split(". ")[0] + ". " + written[1].split(". ", 1)[1]
                assert not story.is_right(f"{mixed} {closing}")
        # Results carry over, and every equation holds.
        assert all(eval(f"{a}{op}{b}") == c for a, op, b, c in story.steps)
        assert not story.is_right(f"{write_steps(story.steps[:-1], 'plain')} {story.closings(result)[0]}")


def test_a_record_may_come_in_any_order_but_not_with_a_key_twice() -> None:
    rng = Random(6)
    for _ in range(50):
        order = draw_order(rng)
        keys = tuple(rng.sample(list(order.record), 5))
        text = write(order.record, keys, True, rng.random() < 0.5)
        assert order.is_right(text)
        assert not order.is_right(text[:-1] + ',"total":' + str(order.record["total"]) + "}")
        short = {key: value for key, value in order.record.items() if key != "day"}
        assert not order.is_right(json.dumps(short))
        assert not order.is_right(json.dumps(order.record | {"items": 3}))
    assert not order.is_right("[1]")


def test_new_names_have_to_be_new_distinct_and_kept() -> None:
    prompt, answer, is_right = fresh(Random(8))
    code = prompt.removeprefix("New names:\n").removesuffix("\n")
    assert is_right(answer)
    names = [name for name in re.findall("[a-z]+", answer) if name not in re.findall("[a-z]+", code)]
    first, second = sorted(set(names))[:2]
    assert not is_right(code)
    assert not is_right(answer.replace(first, second))
    assert not is_right(answer.replace(first, "other", 1) if names.count(first) > 1 else code)
    assert is_right(re.sub(rf"\b{first}\b", "other", answer))


def test_sudoku_is_solved_by_singles_alone() -> None:
    grid = search(Random(1))
    assert is_solved(grid)
    assert singles(grid) == grid
    puzzle = [0 if cell in (0, 7, 14) else value for cell, value in enumerate(grid)]
    assert singles(puzzle) == grid
    assert singles([0] * 36) is None
    assert not is_solved(grid[1:] + grid[:1])
    assert read("123456/123456") is None and read("12345x" + "/123456" * 5) is None


@pytest.mark.parametrize("task", TASKS)
def test_held_out_problems_are_not_trained_on(task: str) -> None:
    kept = held_out(task, 5, 1)
    assert len({problem.prompt for problem in kept}) == 5
    assert all(problem.reserved and problem.is_right(problem.answer) for problem in kept)
    assert held_out(task, 5, 1) == kept
    rng = Random(2)
    assert not any(training(task, rng).reserved for _ in range(200))


def test_a_batch_depends_on_its_number_alone() -> None:
    tokenizer = BytePairs.learn([p.prompt + p.answer for task in TASKS for p in problems(task)], 500)
    shares = dict.fromkeys(TASKS, 3)
    rows, lengths = pack(tokenizer, shares, 1, 7, 160)
    again, _ = pack(tokenizer, shares, 1, 7, 160)
    other, _ = pack(tokenizer, shares, 1, 8, 160)
    assert (rows == again).all() and not (rows == other).all()
    count = 3 * len(TASKS)
    assert rows.shape == (count, 160) and lengths.shape == (2, count)
    for row, prompt, answer in zip(rows, *lengths, strict=True):
        text = tokenizer.decode(row[prompt : prompt + answer])
        assert tokenizer.encode(text) == row[prompt : prompt + answer].tolist()
        assert (row[prompt + answer :] == EOS).all()
