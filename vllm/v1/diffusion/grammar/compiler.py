# SPDX-License-Identifier: Apache-2.0
"""Makes a worker's grammars of what the engine core has compiled, or by upstream's backends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from concurrent.futures import Future
from functools import cached_property

import numpy as np
import torch

from vllm.config import VllmConfig
from vllm.parser.engine.adapters import ParserEngineReasoningAdapter
from vllm.reasoning import ReasoningParser
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.diffusion.config import limit_of, resolve_diffusion_config
from vllm.v1.diffusion.grammar.cursor import GrammarCursor, bits_of
from vllm.v1.diffusion.message.compiled_grammar import matching
from vllm.v1.diffusion.message.request_data import DiffusionRequestData
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_types import StructuredOutputGrammar, StructuredOutputOptions
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend, XgrammarGrammar


class GrammarCompiler:
    """Makes a cursor for every request that has a grammar.

    The engine core compiles each grammar: it holds a request until then, and reads along as blocks
    are emitted. What it compiled comes with the request. See ``message/compiled_grammar`` for what
    a worker in another process still does itself.
    """

    def __init__(self, vllm_config: VllmConfig) -> None:
        """Makes the compiler; the tokenizer is loaded with the first grammar."""
        self.vllm_config = vllm_config
        config = resolve_diffusion_config(vllm_config)
        self._mask_token_id = config.mask_token_id
        self.time_limit = limit_of(config, "grammar_time_limit")
        """Milliseconds of a processor that a grammar may take for each token."""
        self._control: set[int] | None = None

    def start(self, data: NewRequestData) -> Callable[[], GrammarCursor] | None:
        """Begins to compile a request's grammar, in another thread, if it has not been.

        Returns:
            What waits for it and gives a cursor behind the tokens that the request has
            written so far; None for a request without a grammar.
        """
        params = data.sampling_params
        if params is None or params.structured_outputs is None:
            return None
        assert isinstance(data, DiffusionRequestData)
        request = Request(
            data.req_id,
            data.prompt_token_ids,
            params,
            None,
            reasoning_ended=data.reasoning_ended,
            reasoning_parser_kwargs=data.reasoning_parser_kwargs,
        )
        stops = params.all_stop_token_ids
        grammar = data.compiled.fresh(stops) if data.compiled is not None else None
        if grammar is None:
            self._compile(request, None if data.compiled is None else data.compiled.form)
        else:
            assert request.structured_output_request is not None
            request.structured_output_request.grammar = grammar
        written = (data.prefill_token_ids or [])[data.prompt_len :]
        return lambda: self._cursor(request, written)

    def _compile(self, request: Request, text: str | bytes | None) -> None:
        """Reads xgrammar's text of a compiled grammar, or has the grammar compiled, in another thread."""
        manager, structured = self._manager, request.structured_output_request
        if text is None:
            manager.grammar_init(request)
            return
        assert structured is not None and request.sampling_params is not None
        stops = request.sampling_params.all_stop_token_ids

        def read() -> XgrammarGrammar:
            from xgrammar import CompiledGrammar

            backend = self._xgrammar
            # Only what a compiler has compiled names its tokenizer.
            tokenizer_info = backend.compiler.compile_regex("a").tokenizer_info
            compiled = CompiledGrammar.deserialize_json(str(text), tokenizer_info)
            return matching(compiled, backend.vocab_size, stops)

        structured.grammar = manager.executor.submit(read)

    @cached_property
    def _xgrammar(self) -> XgrammarBackend:
        config = self.vllm_config
        return XgrammarBackend(config, self._manager.tokenizer, config.model_config.get_vocab_size())

    @cached_property
    def _manager(self) -> StructuredOutputManager:
        return StructuredOutputManager(self.vllm_config)

    def _cursor(self, request: Request, written: Iterable[int]) -> GrammarCursor:
        structured = request.structured_output_request
        assert structured is not None
        if isinstance(structured._grammar, Future):
            structured._grammar.result()
        grammar = structured.grammar
        assert isinstance(grammar, StructuredOutputGrammar)
        kind, _ = structured.structured_output_key
        assert request.sampling_params is not None
        permitted = self._permitted(grammar, kind, request.sampling_params.all_stop_token_ids)
        # guidance writes as many tokens as its tokenizer has, the others as many as the model.
        size = getattr(getattr(grammar, "ll_tokenizer", grammar), "vocab_size", None)
        size = size or self.vllm_config.model_config.get_vocab_size()
        bitmask = torch.full((1, -(-size // 32)), -1, dtype=torch.int32)
        cursor = GrammarCursor(
            grammar, bitmask, permitted, self._reasoning(request), time_limit=self.time_limit / 1000
        )
        for token in written:
            cursor.accept(token)
        return cursor

    def _permitted(
        self, grammar: StructuredOutputGrammar, kind: StructuredOutputOptions, stop_token_ids: Set[int]
    ) -> np.ndarray:
        """Bits of the tokens that a text of some kind may consist of or end with.

        Backends take a special token for the characters of its name, but no text shows it.
        Only structural tags can ask for one. The mask token is never one.
        """
        flags = np.ones(self.vllm_config.model_config.get_vocab_size(), dtype=bool)
        if kind is not StructuredOutputOptions.STRUCTURAL_TAG:
            _set(flags, self._special_tokens, False)
        if kind in (StructuredOutputOptions.JSON, StructuredOutputOptions.JSON_OBJECT):
            _set(flags, self._control_tokens(grammar), False)
        _set(flags, {*stop_token_ids, self._manager.tokenizer.eos_token_id}, True)
        if self._mask_token_id is not None:
            _set(flags, {self._mask_token_id}, False)
        return bits_of(flags)

    def _control_tokens(self, grammar: StructuredOutputGrammar) -> set[int]:
        """Tokens with control characters that no JSON needs: all but line ends.

        xgrammar lets them into strings of a bounded length, where JSON forbids them.
        """
        if not isinstance(grammar, XgrammarGrammar):
            return set()
        if self._control is None:
            control = {*range(32)} - {*b"\n\r"}
            vocabulary = grammar.ctx.tokenizer_info.decoded_vocab
            self._control = {i for i, token in enumerate(vocabulary) if not control.isdisjoint(token)}
        return self._control

    @cached_property
    def _special_tokens(self) -> set[int]:
        manager = self._manager
        tokenizer = manager.tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        return {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)

    def _reasoning(self, request: Request) -> TokenwiseReasoning | None:
        manager, structured = self._manager, request.structured_output_request
        parser_cls = manager.reasoner_cls
        assert structured is not None
        if parser_cls is None or manager.enable_in_reasoning or structured.reasoning_ended:
            return None
        kwargs = structured.reasoning_parser_kwargs or {}
        parser = parser_cls(tokenizer=manager.tokenizer, **kwargs)
        prompt = list(request.prompt_token_ids or [])
        if structured.reasoning_ended is None and parser.is_reasoning_end(prompt):
            return None
        return TokenwiseReasoning(parser, prompt)


class TokenwiseReasoning:
    """Finds the end of the reasoning; see :class:`vllm.v1.diffusion.grammar.cursor.ReasoningEnd`."""

    def __init__(self, parser: ReasoningParser, prompt: list[int]) -> None:
        """Makes it, at the end of the prompt."""
        self._parser = parser
        self._tokens = prompt
        self.token_is_content = False

    def ends_with(self, token: int) -> bool:
        """Takes the next token; whether the reasoning has ended with it."""
        parser = self._parser
        self._tokens.append(token)
        if isinstance(parser, ParserEngineReasoningAdapter) and parser.reasoning_end_token_ids:
            end = parser.find_reasoning_end([token])
            if end is not None:
                self.token_is_content = end.implicit
                return True
        return parser.is_reasoning_end_streaming(self._tokens, [token])


def _set(flags: np.ndarray, tokens: Set[int], value: bool) -> None:
    flags[[t for t in tokens if 0 <= t < len(flags)]] = value
