# SPDX-License-Identifier: Apache-2.0
"""A canvas that unmasks in any order and a grammar that reads from left to right."""

from __future__ import annotations

import random
import re
import time
from typing import Any

import numpy as np
import pytest

from tests.policies.grammars import BACKENDS, END, MASK, VOCABULARY
from vllm.v1.diffusion.grammar.cursor import CanvasGrammar, GrammarCursor, bits_of
from vllm.v1.structured_output.backend_types import StructuredOutputOptions

SUDOKU = "[1-4]{4}(/[1-4]{4}){3}"
RECORD = r'\{"name": ?"[a-z]{0,7}", "age": (0|[1-9][0-9]?)\}'
REGEXES = [SUDOKU, "yes|no|perhaps not", "[a-f]{5,20}x?", RECORD, ".{9}"]


def cursor_of(backend: Any, regex: str, reasoning: Any = None, **more: Any) -> GrammarCursor:
    grammar = backend.compile_grammar(StructuredOutputOptions.REGEX, regex, stop_token_ids={END})
    text = bits_of(np.arange(VOCABULARY) != MASK)
    return GrammarCursor(grammar, backend.allocate_token_bitmask(1), text, reasoning, **more)


def test_a_grammar_that_takes_too_long(backend_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a second, and the limit for each token that was read, the block is read no further."""
    took = iter(range(10**6))
    monkeypatch.setattr(time, "thread_time", lambda: 0.5 * next(took))  # Half a second each call.
    backend = backend_of("xgrammar")
    quick, slow = (cursor_of(backend, "[a-z]{40}", time_limit=limit) for limit in (2.0, 0.1))
    for one in (quick, slow):
        canvas = CanvasGrammar(one, 16, 0)
        assert canvas.revise([97] * 16, [False] * 16, 97) is (one is quick)
    assert (quick.slow, quick.tokens, quick.seconds) == (False, 16, 16.0)
    assert (slow.slow, slow.tokens, slow.seconds) == (True, 2, 2.0)


def denoise(
    grammar: CanvasGrammar, propose: Any, rng: random.Random, length: int, known: int
) -> tuple[list[int], int]:
    """Denoises blocks, each step unmasking random positions; the tokens and the steps."""
    written: list[int] = []
    steps = 0
    while grammar.cursor.end_token is None and len(written) < 200:
        first = (known + len(written)) % length
        tokens = [7] * first + [MASK] * (length - first)
        masked = [i >= first for i in range(length)]
        for _ in range(3 * length + 3):
            steps += 1
            open_ = [i for i in range(length) if masked[i]]
            place = len(written) - first
            proposals = {i: propose(place + i, grammar.cursor, i == grammar.column) for i in open_}
            for i in rng.sample(open_, rng.randint(1, len(open_))):
                tokens[i], masked[i] = proposals[i], False
            if grammar.revise(tokens, masked, proposals[grammar.column]):
                break
            assert masked[grammar.column]
        assert not any(masked), "a block must end"
        written += tokens[first:]
    return written, steps


def text_of(tokenizer: Any, written: list[int]) -> str:
    return str(tokenizer.decode(written[: written.index(END)], skip_special_tokens=True))


@pytest.mark.parametrize("name", BACKENDS)
def test_whatever_the_model_says(backend_of: Any, tokenizer: Any, name: str) -> None:
    rng = random.Random(name)

    def propose(place: int, cursor: GrammarCursor, restricted: bool) -> int:
        while True:
            token = rng.randrange(VOCABULARY)
            if token != MASK and (not restricted or cursor.permits(token)):
                return token

    for regex in REGEXES:
        for length in (1, 4, 16):
            known = rng.randrange(40)
            grammar = CanvasGrammar(cursor_of(backend_of(name), regex), length, known % length)
            written, _ = denoise(grammar, propose, rng, length, known)
            assert re.fullmatch(regex, text_of(tokenizer, written)), (regex, length)
            assert set(written[written.index(END) :]) == {END}


@pytest.mark.parametrize("name", BACKENDS)
def test_logits_that_are_no_numbers_end_too(backend_of: Any, tokenizer: Any, name: str) -> None:
    """Their rows propose token 0 everywhere, which is also what a step unmasks."""
    rng = random.Random(name)
    for regex in REGEXES:
        for length in (1, 4, 16):
            grammar = CanvasGrammar(cursor_of(backend_of(name), regex), length, 0)
            written, steps = denoise(grammar, lambda *_: 0, rng, length, 0)
            assert END not in written or re.fullmatch(regex, text_of(tokenizer, written))
            assert len(written) >= 200 or END in written
            assert steps <= 2 * len(written)


class Deceptive:
    """A grammar whose bitmask permits all, and which accepts one text only."""

    def __init__(self, text: bytes) -> None:
        self.rest = [*text, END]

    def fill_bitmask(self, bitmask: Any, index: int) -> None:
        bitmask[index] = -1

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        accepted = tokens == self.rest[:1]
        del self.rest[: int(accepted)]
        return accepted

    def is_terminated(self) -> bool:
        return not self.rest


def test_what_is_permitted_and_refused_costs_one_step_more(backend_of: Any) -> None:
    bitmask = backend_of("xgrammar").allocate_token_bitmask(1)
    permitted = bits_of(np.arange(VOCABULARY) != MASK)
    deceptive: Any = Deceptive(b"dcba")
    grammar = CanvasGrammar(GrammarCursor(deceptive, bitmask, permitted), 8, 0)
    written, steps = denoise(grammar, lambda *_: ord("z"), random.Random(4), 8, 0)
    assert written == [*b"dcba", *[END] * 4]
    assert steps <= 2 * 5 + 1


def test_a_model_that_agrees_is_left_alone(backend_of: Any) -> None:
    """In whatever order positions are unmasked, none is masked again."""
    answer = [*b"1423/2341/3214/4132"]
    rng = random.Random(1)
    for _ in range(30):
        grammar = CanvasGrammar(cursor_of(backend_of("xgrammar"), SUDOKU), 16, 3)
        revise = grammar.revise
        unmasked: dict[Any, Any] = {}

        def watched(
            tokens: list[int], masked: list[bool], *args: Any, now: Any = revise, seen: Any = unmasked
        ) -> bool:
            before = [(t, m) for t, m in zip(tokens, masked, strict=True)]
            done: bool = now(tokens, masked, *args)
            for (token, was_masked), new, still in zip(before, tokens, masked, strict=True):
                assert was_masked or (new == token and not still)
            return done

        grammar.revise = watched  # type: ignore[method-assign, assignment]
        written, steps = denoise(grammar, lambda i, *_: (answer + 99 * [END])[i], rng, 16, 3)
        assert written[:20] == [*answer, END]
        assert steps <= 32


def test_what_is_forced_needs_no_step(backend_of: Any) -> None:
    grammar = CanvasGrammar(cursor_of(backend_of("xgrammar"), "abcdefgh[0-9]ij"), 16, 0)
    tokens, masked = [MASK] * 16, [True] * 16
    tokens[12], masked[12] = ord("z"), False
    assert not grammar.revise(tokens, masked, proposal=ord("q"))
    assert bytes(tokens[:8]) == b"abcdefgh" and grammar.column == 8 and masked[8]
    assert not masked[12]  # Not read yet.
    tokens[8], masked[8] = ord("5"), False
    assert grammar.revise(tokens, masked, proposal=ord("5"))
    assert tokens == [*b"abcdefgh5ij", *[END] * 5]


def test_a_clash_masks_what_follows_and_goes_left_to_right(backend_of: Any) -> None:
    grammar = CanvasGrammar(cursor_of(backend_of("xgrammar"), "[a-c]{3,9}"), 8, 0)
    tokens, masked = [*b"abXcc"] + [MASK] * 3, [False] * 5 + [True] * 3
    assert not grammar.revise(tokens, masked, proposal=ord("a"))
    assert grammar.column == 2 and masked == [False] * 2 + [True] * 6
    # The policy unmasks the last position only: the first open one is unmasked for it.
    tokens[7], masked[7] = ord("a"), False
    assert not grammar.revise(tokens, masked, proposal=ord("c"))
    assert bytes(tokens[:3]) == b"abc" and masked == [False] * 3 + [True] * 5
    # A policy that edits what has been read does so in vain.
    tokens[0] = ord("q")
    tokens[3:5], masked[3:5] = b"aa", [False] * 2
    assert not grammar.revise(tokens, masked, proposal=ord("a"))
    assert bytes(tokens[:5]) == b"abcaa" and masked[5:] == [True] * 3


def test_an_anchor_shows_one_position_of_its_block(backend_of: Any) -> None:
    grammar = CanvasGrammar(cursor_of(backend_of("xgrammar"), "[a-c]{9}"), 4, 0)
    assert not grammar.revise([ord("a")], [False], proposal=ord("a"), covered=False)
    assert grammar.column == 1
    assert grammar.revise([*b"abcb"], [False] * 4, proposal=ord("b"))
    assert grammar.column == 0


def test_reasoning_is_free(backend_of: Any, tokenizer: Any) -> None:
    class UntilBar:
        token_is_content = False

        def ends_with(self, token: int) -> bool:
            return token == ord("|")

    cursor = cursor_of(backend_of("xgrammar"), "[0-9]{3}", UntilBar())
    grammar = CanvasGrammar(cursor, 16, 0)
    assert cursor.allowed is None and cursor.only() is None
    tokens, masked = [*b"Hm. |12cc"] + [MASK] * 7, [False] * 9 + [True] * 7
    assert not grammar.revise(tokens, masked, proposal=ord("H"))
    assert grammar.column == 7 and all(masked[7:])
    assert cursor.permits(ord("3")) and not cursor.permits(ord("c"))


def test_a_grammar_that_no_token_continues_lets_go(backend_of: Any) -> None:
    """The request must end: the engine core, reading along, ends it with an error."""
    backend = backend_of("xgrammar")
    compiled = backend.compile_grammar(StructuredOutputOptions.REGEX, "a{3}", stop_token_ids={END})
    cursor = GrammarCursor(compiled, backend.allocate_token_bitmask(1), bits_of(np.arange(300) > ord("a")))
    grammar = CanvasGrammar(cursor, 4, 0)
    assert grammar.revise([*b"xyzx"], [False] * 4, proposal=ord("x"))


def test_bits() -> None:
    bits = bits_of(np.isin(np.arange(70), [0, 31, 33, 64]))
    assert bits.dtype == np.int32 and bits.view(np.uint32).tolist() == [0x80000001, 2, 1]
