# SPDX-License-Identifier: Apache-2.0
"""The OpenAI completions endpoint, through the official client."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.server.known_answers import FIRST_BLOCK, SOLVED, SUDOKU, chat, complete
from vllm.v1.diffusion.demo.puzzles import TASKS, make_puzzle

# The model is sure of everything but this, and of this only where the order is given.
ANY_GRID = "sudoku 0000/0000/0000/0000="
SAMPLED = {"temperature": 2.0, "max_tokens": 19, "vllm_xargs": {"diffusion_algorithm": "sequential"}}


def test_a_completion(client: Any) -> None:
    answer = complete(client)
    assert answer.choices[0].text == SOLVED
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == len(SUDOKU)
    assert answer.usage.completion_tokens == len(SOLVED) + 1  # and the end token


def test_several_prompts_and_token_ids(client: Any) -> None:
    answers = complete(client, ["add 482+917=", "sort 53914="]).choices
    assert [a.text for a in answers] == ["1399", "13459"]
    ids = [ord(char) for char in "reverse stone="]
    assert complete(client, ids).choices[0].text == "enots"


def test_echo(client: Any) -> None:
    assert complete(client, "add 1+2=", echo=True).choices[0].text == "add 1+2=3"


def test_streaming_a_block_at_a_time(client: Any) -> None:
    for _ in range(5):  # A server that is slow to send joins what has come meanwhile.
        chunks = list(complete(client, stream=True, stream_options={"include_usage": True}))
        texts = [c.choices[0].text for c in chunks if c.choices]
        assert "".join(texts) == SOLVED
        pieces = [t for t in texts if t]
        if pieces != [SOLVED]:
            break
    assert pieces == [FIRST_BLOCK, SOLVED.removeprefix(FIRST_BLOCK)]
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens == len(SOLVED) + 1


def test_short_blocks_come_in_more_pieces(client: Any) -> None:
    how: dict[str, Any] = {"vllm_xargs": {"diffusion_block_length": 4}}
    whole = complete(client, **how).choices[0].text
    texts = [c.choices[0].text for c in complete(client, stream=True, **how) if c.choices]
    assert "".join(texts) == whole
    lengths = [len(t) for t in texts if t]
    # 27 tokens of prompt leave 1 of a block of 4.
    assert lengths[0] == 1
    assert all(n % 4 == 0 for n in lengths[1:-1])
    assert len(lengths) >= 3


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    ("stop", "text", "reason"),
    [
        ("/2", "1423", "/2"),  # begins in the first block, ends in the second
        (["nothing", "32"], "1423/2341/", "32"),
        ("4", "1", "4"),
        ("3/2341/3214/4", "142", "3/2341/3214/4"),
        ("absent", SOLVED, None),
    ],
)
def test_stop_strings_cut_exactly(client: Any, streams: bool, stop: Any, text: Any, reason: Any) -> None:
    if streams:
        choices = [c.choices[0] for c in complete(client, stop=stop, stream=True) if c.choices]
        assert "".join(c.text for c in choices) == text
        assert choices[-1].finish_reason == "stop"
        assert choices[-1].stop_reason == reason
    else:
        choice = complete(client, stop=stop).choices[0]
        assert (choice.text, choice.finish_reason, choice.stop_reason) == (text, "stop", reason)


def test_a_stop_string_may_stay(client: Any) -> None:
    answer = complete(client, stop="/2", include_stop_str_in_output=True)
    assert answer.choices[0].text == "1423/2"


def test_stop_token_ids(client: Any) -> None:
    answer = complete(client, stop_token_ids=[ord("/")])
    assert answer.choices[0].stop_reason == ord("/")
    assert answer.choices[0].text == "1423"
    assert answer.usage.completion_tokens == 5


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("max_tokens", [1, 4, 5, 6, 7, 18, 19])
def test_max_tokens_need_not_be_whole_blocks(client: Any, max_tokens: int, streams: bool) -> None:
    answer = complete(client, max_tokens=max_tokens, stream=streams)
    if streams:
        choices = [c.choices[0] for c in answer if c.choices]
        assert "".join(c.text for c in choices) == SOLVED[:max_tokens]
        assert choices[-1].finish_reason == "length"
    else:
        assert answer.choices[0].text == SOLVED[:max_tokens]
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == max_tokens


def test_the_end_token_can_be_ignored(client: Any) -> None:
    answer = complete(client, ignore_eos=True, max_tokens=50)
    assert answer.usage.completion_tokens == 50
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].text.startswith(SOLVED)


def test_seeds_and_temperature(client: Any) -> None:
    def sample(**parameters: Any) -> Any:
        return complete(client, ANY_GRID, **{**SAMPLED, **parameters}).choices[0].text

    assert sample(seed=1) == sample(seed=1)
    assert len({sample(seed=seed) for seed in range(4)}) > 1
    assert sample(seed=1, temperature=0) == sample(seed=2, temperature=0)
    # The most probable token alone is left.
    assert sample(seed=1, top_k=1) == sample(seed=2, top_p=1e-6)


def test_two_choices(client: Any) -> None:
    how = {**SAMPLED, "ignore_eos": True, "seed": 5, "n": 2}
    first, again = (complete(client, ANY_GRID, **how) for _ in range(2))
    assert [c.index for c in first.choices] == [0, 1]
    texts = [c.text for c in first.choices]
    assert texts == [c.text for c in again.choices]
    assert texts[0] != texts[1]
    assert first.usage.completion_tokens == 38


def test_many_at_once(client: Any) -> None:
    rng = random.Random(11)
    puzzles = [make_puzzle(task, rng) for task in TASKS for _ in range(12)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda p: complete(client, p.prompt).choices[0].text, puzzles))
    alone = [complete(client, p.prompt).choices[0].text for p in puzzles[::6]]
    assert answers[::6] == alone
    assert sum(p.is_right(a) for p, a in zip(puzzles, answers, strict=True)) >= 46


def test_chat_sends_the_last_message(client: Any) -> None:
    messages = [
        {"role": "system", "content": "You solve puzzles."},
        {"role": "user", "content": "add 1+1="},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": SUDOKU},
    ]
    answer = client.chat.completions.create(model="bundled", messages=messages, max_tokens=32)
    assert answer.choices[0].message.content == SOLVED
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == len(SUDOKU)


def test_chat_without_max_tokens(client: Any) -> None:
    messages = [{"role": "user", "content": "reverse stone="}]
    answer = client.chat.completions.create(model="bundled", messages=messages)
    assert answer.choices[0].message.content == "enots"


def test_chat_streams_a_block_at_a_time(client: Any) -> None:
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    texts = [c.choices[0].delta.content for c in chunks if c.choices]
    assert [t for t in texts if t] == [FIRST_BLOCK, SOLVED.removeprefix(FIRST_BLOCK)]
    assert chunks[-1].usage.completion_tokens == len(SOLVED) + 1
