# SPDX-License-Identifier: Apache-2.0
"""Tool and reasoning parsers read a block token by token, as the text of each token arrives.

Upstream's parsers are written for deltas of one token. A block brings many, and where a stop string may
begin, its ids run ahead of its text. So a block is divided into its tokens here, and a token waits
for its text. End tokens that a canvas holds behind the answer are not text, though a parser asks for
the text of special tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from vllm import SamplingParams
from vllm.entrypoints.generate.base.protocol import DeltaFunctionCall, DeltaMessage, DeltaToolCall
from vllm.parser.abstract_parser import Parser
from vllm.renderers.chat_utils import make_tool_call_id
from vllm.tool_parsers.structural_tag_registry import resolve_tool_strictness
from vllm.tool_parsers.tool_strict_level import ToolStrictLevel
from vllm.v1.diffusion.families import family_of_architectures
from vllm.v1.diffusion.frontend.closed_calls import ClosedCalls, OpenCalls
from vllm.v1.diffusion.frontend.held_parsers import HELD_REASONING_PARSERS, HELD_TOOL_PARSERS
from vllm.v1.diffusion.frontend.special_text import end_ids
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.detokenizer import BaseIncrementalDetokenizer, IncrementalDetokenizer

if TYPE_CHECKING:
    from vllm.config import ModelConfig
    from vllm.entrypoints.generate.base.protocol import FunctionCall
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.tokenizers import TokenizerLike

    Request = ChatCompletionRequest | ResponsesRequest


class TokenTexts:
    """Divides the text of an answer into that of its tokens, as upstream's detokenizer makes it."""

    def __init__(self, tokenizer: TokenizerLike, request: Request, prompt: Sequence[int] | None) -> None:
        """Begins an answer.

        Args:
            tokenizer: The tokenizer.
            request: How the text is made: whether with special tokens.
            prompt: Ids of the prompt, on which the first token's text may depend.
        """
        params = SamplingParams(
            skip_special_tokens=request.skip_special_tokens,
            spaces_between_special_tokens=getattr(request, "spaces_between_special_tokens", True),
        )
        detokenizer = IncrementalDetokenizer.from_new_request(tokenizer, _engine_request(prompt, params))
        assert isinstance(detokenizer, BaseIncrementalDetokenizer)
        self._detokenizer = detokenizer
        self._waiting: deque[tuple[int, int]] = deque()
        """Tokens whose text has not arrived, and where it ends."""
        self._arrived = 0
        self._handed = 0
        self.agrees = True
        """Whether the text that arrived is that of the tokens; if not, nothing can be divided."""

    def take(self, text: str, ids: Sequence[int], last: bool) -> Iterator[tuple[int, str]]:
        """The tokens whose text has arrived, each with its own.

        Args:
            text: What has arrived.
            ids: New tokens.
            last: Whether the answer ends, maybe inside a token (a stop string).
        """
        for token in ids:
            self._detokenizer.update([token], False)
            self._waiting.append((token, len(self._detokenizer.output_text)))
        whole = self._detokenizer.output_text
        self.agrees = self.agrees and whole.startswith(text, self._arrived)
        self._arrived += len(text)
        if not self.agrees:
            return
        while self._waiting and self._waiting[0][1] <= self._arrived:
            token, end = self._waiting.popleft()
            yield token, whole[self._handed : end]
            self._handed = end
        if last and self._handed < self._arrived and self._waiting:
            yield self._waiting[0][0], whole[self._handed : self._arrived]


class BlockParser(Parser):
    """Methods that :func:`by_token` puts before a parser's own."""

    _holds_calls: ClassVar[bool] = False
    _holds_reasoning: ClassVar[bool] = False

    def __init__(self, tokenizer: TokenizerLike, tools: Any = None, *args: Any, **more: Any) -> None:
        super().__init__(tokenizer, tools, *args, **more)
        model_config: ModelConfig | None = more.get("model_config")
        self._again: Callable[[], Parser] = lambda: type(self)(tokenizer, tools, *args, **more)
        self._divides = model_config is None or _denoises(model_config)
        self._ends = end_ids(tokenizer, model_config) if self._divides else frozenset()
        self._prompt: Sequence[int] | None = None
        self._texts: TokenTexts | None = None
        self._read: list[tuple[int, str]] = []
        self._calls = False

    @override
    def set_prompt_token_ids(self, prompt_token_ids: Sequence[int]) -> None:
        self._prompt = prompt_token_ids
        super().set_prompt_token_ids(prompt_token_ids)

    @override
    def adjust_request(self, request: Request) -> Request:
        """Holds the arguments of forced calls to their schemas."""
        choice, tools = request.tool_choice, request.tools
        if self._divides and tools and choice not in (None, "auto", "none"):
            strict: Any = resolve_tool_strictness(tools, choice, ToolStrictLevel.PARAMETER)
            request.tools = list(strict)
        return super().adjust_request(request)

    @override
    def parse(
        self,
        model_output: str,
        request: Request,
        enable_auto_tools: bool = False,
        model_output_token_ids: Sequence[int] = (),
    ) -> tuple[str | None, str | None, list[FunctionCall] | None]:
        """Parses an answer without its end tokens; see upstream."""
        if not request.skip_special_tokens and self._ends.intersection(model_output_token_ids):
            texts = TokenTexts(self.model_tokenizer, request, self._prompt)
            pieces = list(texts.take(model_output, model_output_token_ids, last=True))
            if texts.agrees:
                pieces = [piece for piece in pieces if piece[0] not in self._ends]
                model_output = "".join(text for _, text in pieces)
                model_output_token_ids = [token for token, _ in pieces]
        return super().parse(model_output, request, enable_auto_tools, model_output_token_ids)  # type: ignore[safe-super]

    @override
    def parse_delta(
        self,
        delta_text: str,
        delta_token_ids: list[int],
        request: Request,
        prompt_token_ids: list[int] | None = None,
        *,
        finished: bool,
    ) -> DeltaMessage | None:
        """Parses a block, or what a stream brings at once of one; see upstream."""

        def read(text: str, ids: list[int], last: bool) -> DeltaMessage | None:
            return parse(text, ids, request, prompt_token_ids, finished=last)

        parse = super().parse_delta  # type: ignore[safe-super]
        if not self._divides:
            return read(delta_text, delta_token_ids, finished)
        self._prompt = prompt_token_ids or self._prompt
        if self._texts is None:
            self._texts = TokenTexts(self.model_tokenizer, request, self._prompt)
        pieces = list(self._texts.take(delta_text, delta_token_ids, finished))
        if not self._texts.agrees:
            return read(delta_text, delta_token_ids, finished)
        pieces = [piece for piece in pieces if piece[0] not in self._ends]
        self._read += pieces
        if self._whole_only(request):
            return self._whole(request) if finished else None
        deltas = [read(text, [token], False) for token, text in pieces[: len(pieces) - finished]]
        if finished:
            deltas += [read(text, [token], True) for token, text in pieces[-1:]] or [read("", [], True)]
        delta = merged(deltas)
        self._calls = self._calls or bool(delta and delta.tool_calls)
        return self._closed(delta, request) if finished and self._calls else delta

    def _whole_only(self, request: Request) -> bool:
        """Whether upstream's parser streams something else than it makes of the whole answer."""
        asks = bool(request.tools) and request.tool_choice != "none"
        return self._holds_reasoning or (self._holds_calls and asks)

    def _whole(self, request: Request) -> DeltaMessage:
        """All of an answer in its last delta."""
        text, ids = "".join(text for _, text in self._read), [token for token, _ in self._read]
        whole = self._again()
        if self._prompt is not None:
            whole.set_prompt_token_ids(self._prompt)
        reasoning, content, calls = whole.parse(text, request, True, ids)
        fields: dict[str, Any] = {"content": content} if content else {}
        if reasoning and request.include_reasoning:
            fields["reasoning"] = reasoning
        if calls:
            fields["tool_calls"] = [_delta_of(i, call) for i, call in enumerate(calls)]
        return (ClosedCalls if calls else DeltaMessage)(**fields)

    def _closed(self, delta: DeltaMessage | None, request: Request) -> DeltaMessage | None:
        """The last delta, which says whether the whole answer has calls too."""
        whole = self._again()
        text, ids = "".join(text for _, text in self._read), [token for token, _ in self._read]
        kind = ClosedCalls if whole.parse(text, request, True, ids)[2] else OpenCalls
        return kind(**{name: getattr(delta, name) for name in delta.model_fields_set} if delta else {})


def by_token(
    parser_cls: type[Parser] | None, tool_parser: str | None = None, reasoning_parser: str | None = None
) -> type[Parser] | None:
    """A parser class that reads blocks of diffusion models token by token.

    Models of other kinds are parsed as upstream does, by the ``model_config`` that their parser is
    made with.

    Args:
        parser_cls: Upstream's; None for none.
        tool_parser: Its name, as ``--tool-call-parser`` has it.
        reasoning_parser: Likewise.
    """
    if parser_cls is None or issubclass(parser_cls, BlockParser):
        return parser_cls
    held = {
        "_holds_calls": tool_parser in HELD_TOOL_PARSERS,
        "_holds_reasoning": reasoning_parser in HELD_REASONING_PARSERS,
    }
    return type(parser_cls.__name__, (BlockParser, parser_cls), held)


def merged(deltas: Sequence[DeltaMessage | None]) -> DeltaMessage | None:
    """One delta of several that follow each other; None for nothing.

    Args:
        deltas: What a parser made of tokens.
    """
    fields: dict[str, Any] = {}
    calls: dict[int, DeltaToolCall] = {}
    found = [delta for delta in deltas if delta is not None]
    for delta in found:
        for name in ("reasoning", "content"):
            if (text := getattr(delta, name)) is not None:
                fields[name] = fields.get(name, "") + text
        for call in delta.tool_calls:
            _join(calls, call)
    if calls:
        fields["tool_calls"] = list(calls.values())
    return DeltaMessage(**fields) if found else None


def _delta_of(index: int, call: FunctionCall) -> DeltaToolCall:
    """A whole call as a delta."""
    function = DeltaFunctionCall(name=call.name, arguments=call.arguments)
    return DeltaToolCall(index=index, id=call.id or make_tool_call_id(), type="function", function=function)


def _join(calls: dict[int, DeltaToolCall], call: DeltaToolCall) -> None:
    """Adds a part of a call to what has come of it."""
    begun = calls.get(call.index)
    if begun is None:
        calls[call.index] = call
        return
    function = call.function or DeltaFunctionCall()
    before = begun.function or DeltaFunctionCall()
    arguments = [part for part in (before.arguments, function.arguments) if part is not None]
    begun.function = DeltaFunctionCall(
        name=before.name or function.name, arguments="".join(arguments) if arguments else None
    )
    begun.id, begun.type = begun.id or call.id, begun.type or call.type


def _denoises(model_config: ModelConfig) -> bool:
    """Whether a model is one of ours or of upstream's that write blocks."""
    return family_of_architectures(model_config.architectures) is not None or model_config.is_diffusion


def _engine_request(prompt: Sequence[int] | None, params: SamplingParams) -> EngineCoreRequest:
    """What a detokenizer reads of a request."""
    return EngineCoreRequest(
        request_id="parsed",
        prompt_token_ids=list(prompt or ()),
        mm_features=None,
        sampling_params=params,
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
