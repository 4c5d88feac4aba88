# SPDX-License-Identifier: Apache-2.0
"""A compiled grammar, as the engine core sends it to the workers.

Compiling a grammar of a large vocabulary takes seconds, for which a step must not wait. The engine core
compiles it off the step, while the request waits. A worker in the core's process takes the compiled grammar
as it is. A worker in another process receives a serialised form, where the backend has one (xgrammar,
outlines). Otherwise it compiles the grammar itself: guidance takes milliseconds. So it does where xgrammar's
form would be too large: that holds the automaton of all rules once for each rule.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Set
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from vllm.v1.structured_output.backend_guidance import GuidanceGrammar
from vllm.v1.structured_output.backend_lm_format_enforcer import LMFormatEnforcerGrammar
from vllm.v1.structured_output.backend_outlines import OutlinesGrammar
from vllm.v1.structured_output.backend_types import StructuredOutputGrammar
from vllm.v1.structured_output.backend_xgrammar import XgrammarGrammar

_MOST_CHARACTERS = 2**26
"""Of a form that is worth its reading."""

_AUTOMATON = 14
"""Characters of an automaton in such a form, for each of the grammar's text."""

_FORM = "serialised_form"
"""The attribute of a grammar that holds it."""


@dataclass
class CompiledGrammar:
    """A compiled grammar, in one of its forms.

    Attributes:
        grammar: The core's grammar, however far it has read; None in another process.
        form: Its serialised form, xgrammar's text or outlines' bytes; None for none.
    """

    grammar: StructuredOutputGrammar | None = None
    form: str | bytes | None = None

    def __reduce__(self) -> tuple[Callable[..., CompiledGrammar], tuple[None, str | bytes | None]]:
        """Leaves out what exists in this process only."""
        return CompiledGrammar, (None, self.form)

    def fresh(self, stop_token_ids: Set[int]) -> StructuredOutputGrammar | None:
        """The grammar at its beginning; None where it has to be compiled, or xgrammar's text read.

        Args:
            stop_token_ids: Tokens that end the request.
        """
        grammar = self.grammar
        if isinstance(self.form, bytes):
            vocab_size, eos_token_id, guide = pickle.loads(self.form)
            guide.reset()
            return OutlinesGrammar(vocab_size, eos_token_id, guide)
        if isinstance(grammar, XgrammarGrammar):
            return matching(grammar.ctx, grammar.vocab_size, stop_token_ids)
        if isinstance(grammar, GuidanceGrammar):
            matcher = grammar.ll_matcher.deep_copy()
            matcher.reset()
            return GuidanceGrammar(matcher, grammar.ll_tokenizer, grammar.vocab_size)
        if isinstance(grammar, LMFormatEnforcerGrammar):
            return LMFormatEnforcerGrammar(grammar.token_enforcer)
        return None


def matching(compiled: Any, vocab_size: int, stop_token_ids: Set[int]) -> XgrammarGrammar:
    """A matcher of a grammar that xgrammar has compiled, at its beginning.

    Args:
        compiled: xgrammar's ``CompiledGrammar``.
        vocab_size: Tokens of the vocabulary.
        stop_token_ids: Tokens that end the request.
    """
    import xgrammar

    stops = sorted(stop_token_ids) or None
    matcher = xgrammar.GrammarMatcher(compiled, override_stop_tokens=stops)
    return XgrammarGrammar(vocab_size=vocab_size, matcher=matcher, ctx=compiled)


def serialised(compiling: Any, elsewhere: bool) -> Any:
    """Makes a grammar that is being compiled wait for its serialised form too, off the step.

    Args:
        compiling: What upstream keeps of the request's grammar: a future, or what it gave.
        elsewhere: Whether the workers are in other processes.

    Returns:
        The same; a future's grammar has the form, which :func:`form_of` takes.
    """
    if not isinstance(compiling, Future):
        return compiling
    ready: Future[StructuredOutputGrammar] = Future()

    def finish(done: Future[StructuredOutputGrammar]) -> None:
        try:
            grammar = done.result()
            if isinstance(grammar, OutlinesGrammar):
                # Nothing of outlines' makes a second guide of an index, in whatever process.
                parts = (grammar.vocab_size, grammar.eos_token_id, grammar.guide)
                vars(grammar)[_FORM] = pickle.dumps(parts)
            elif (
                isinstance(grammar, XgrammarGrammar)
                and elsewhere
                and _form_size(grammar.ctx) <= _MOST_CHARACTERS
            ):
                vars(grammar)[_FORM] = grammar.ctx.serialize_json()
            ready.set_result(grammar)
        except BaseException as error:
            ready.set_exception(error)

    compiling.add_done_callback(finish)
    return ready


def _form_size(compiled: Any) -> int:
    """About how many characters the automata of xgrammar's serialised form have."""
    text = str(compiled.grammar)
    return _AUTOMATON * len(text) * (text.count("\n") + 1)


def form_of(grammar: StructuredOutputGrammar) -> str | bytes | None:
    """The serialised form that :func:`serialised` made; None for none."""
    return vars(grammar).get(_FORM)
