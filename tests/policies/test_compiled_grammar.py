# SPDX-License-Identifier: Apache-2.0
"""A grammar that the engine core compiled, in the worker: the same, at its beginning, not compiled again."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import Future
from typing import Any

import pytest
import torch

from tests.policies.grammars import BACKENDS, END, VOCABULARY
from vllm.v1.diffusion.message import compiled_grammar
from vllm.v1.diffusion.message.compiled_grammar import CompiledGrammar, form_of, matching, serialised
from vllm.v1.structured_output.backend_types import StructuredOutputOptions

TEXT = [*b"3132", END]


def compiled(backend: Any) -> Any:
    return backend.compile_grammar(StructuredOutputOptions.REGEX, "[1-3]{4}", stop_token_ids={END})


def allowed(backend: Any, grammar: Any) -> list[int]:
    mask = backend.allocate_token_bitmask(1)
    grammar.fill_bitmask(mask, 0)
    bits = (mask[0][:, None] >> torch.arange(32)) & 1
    found: list[int] = bits.flatten()[:VOCABULARY].nonzero().flatten().tolist()
    return found


def assert_fresh(backend: Any, grammar: Any) -> None:
    assert allowed(backend, grammar) == [*b"123"]
    for token in TEXT:
        assert grammar.accept_tokens("", [token])
    assert grammar.is_terminated()


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("read", [0, 2])
def test_a_worker_has_the_core_s_grammar_at_its_beginning(
    backend_of: Any, name: str, elsewhere: bool, read: int
) -> None:
    """Also after a preemption, when the core has read some of the text, which stays where it is."""
    backend = backend_of(name)
    compiling: Future[Any] = Future()
    waited_for = serialised(compiling, elsewhere)
    assert not waited_for.done()
    compiling.set_result(compiled(backend))
    core = waited_for.result(timeout=0)
    for token in TEXT[:read]:
        assert core.accept_tokens("", [token])
    sent = CompiledGrammar(core, form_of(core))
    if elsewhere:
        sent = pickle.loads(pickle.dumps(sent))
        assert sent.grammar is None
    for _ in range(2):
        grammar = sent.fresh({END})
        if grammar is None and isinstance(sent.form, str):
            import xgrammar

            info = backend.compiler.compile_regex("a").tokenizer_info
            read_again = xgrammar.CompiledGrammar.deserialize_json(sent.form, info)
            grammar = matching(read_again, VOCABULARY, {END})
        if grammar is None:
            assert elsewhere and name == "guidance"  # Compiled in the worker, in milliseconds.
            continue
        assert_fresh(backend, grammar)
    assert allowed(backend, core) == [*b"123"]


def test_what_cannot_be_compiled_stays_an_error() -> None:
    compiling: Future[Any] = Future()
    waited_for = serialised(compiling, elsewhere=True)
    compiling.set_exception(ValueError("no grammar"))
    with pytest.raises(ValueError, match="no grammar"):
        waited_for.result(timeout=0)
    assert serialised(None, elsewhere=False) is None


def test_a_form_that_grows_with_the_square_is_not_made(
    backend_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """xgrammar writes the automaton of all rules once for each rule; a worker compiles such a grammar."""
    forms = []
    backend = backend_of("xgrammar")
    properties = {f"p{i}": {"type": "string", "maxLength": 1000} for i in range(12)}
    schema = json.dumps({"type": "object", "properties": properties})
    for most in (None, 10**6):
        if most is not None:
            monkeypatch.setattr(compiled_grammar, "_MOST_CHARACTERS", most)
        compiling: Future[Any] = Future()
        ready = serialised(compiling, elsewhere=True)
        made = backend.compile_grammar(StructuredOutputOptions.JSON, schema, stop_token_ids={END})
        compiling.set_result(made)
        forms.append(form_of(ready.result()))
    assert isinstance(forms[0], str) and forms[1] is None
    # The estimate is about right, of what that automaton is most of.
    assert 0.4 < compiled_grammar._form_size(made.ctx) / len(forms[0]) < 2.5
