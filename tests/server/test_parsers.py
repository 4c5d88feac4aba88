# SPDX-License-Identifier: Apache-2.0
"""Tool and reasoning parsers see a block at a time and find what they find in the whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.engine.vocabularies import write_tokenizer
from tests.server.parser_samples import REASONING, TOOLS, WEATHER, Sample
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
from vllm.v1.diffusion.frontend.held_parsers import HELD_REASONING_PARSERS, HELD_TOOL_PARSERS

MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
FIRST_MARK, END, MASK = 300, 328, 329
OFFERED = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("weather", "tides")
]
KINDS = {"town": {"type": "string"}, "days": {"type": "array"}, "at": {"type": "object"}}
TYPED = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {key: KINDS[key] for key in keys}},
        },
    }
    for name, keys in (("weather", list(WEATHER)), ("tides", ["at"]))
]
CALLS = (
    '<tool_call>\n{"name": "weather", "arguments": {"town": "Rome é", "days": [1, 2]}}\n</tool_call>\n'
    '<tool_call>\n{"name": "tides", "arguments": {"at": {"lat": 1.5}}}\n</tool_call>'
)
TEXTS = {
    "both": "<think>First the weather,\nthen the tides.</think>" + CALLS,
    "content first": "<think>Hm.</think>I shall look. " + CALLS,
    "no tool": "<think>Nothing to look up.</think>The answer is 42 < 43.",
}
PAIRS = [("hermes", "deepseek_r1"), ("hermes", "qwen3"), ("hermes", None)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tokenizer_with(tmp_path_factory.mktemp("tokenizer"), MARKS)


def tokenizer_with(folder: Path, marks: Sequence[str]) -> Any:
    """A tokenizer of bytes, and marks that are one token each."""
    from vllm.tokenizers import get_tokenizer

    write_tokenizer(folder, "PreTrainedTokenizerFast", 330, eos=END, mask=MASK)
    (folder / "tokenization_own.py").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["auto_map"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    for i, mark in enumerate(marks, FIRST_MARK):
        del vocabulary[f"t{i}"]
        vocabulary[mark] = i
        content["added_tokens"].append(dict(content["added_tokens"][0], id=i, content=mark, special=False))
    content["added_tokens"].sort(key=lambda token: token["id"])
    path.write_text(json.dumps(content))
    return get_tokenizer(str(folder))


def found(delta: Any, parts: dict[str, Any]) -> None:
    """Adds a delta of a stream to what has come so far, as a client does."""
    if delta is None:
        return
    parts["reasoning"] += delta.reasoning or ""
    parts["content"] += delta.content or ""
    for call in delta.tool_calls or ():
        name, arguments = parts["calls"].get(call.index, ("", ""))
        function = call.function
        parts["calls"][call.index] = (name or function.name, arguments + (function.arguments or ""))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(("tool_parser", "reasoning_parser"), PAIRS)
def test_blocks_and_whole_agree(tokenizer: Any, tool_parser: str, reasoning_parser: str, text: str) -> None:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.parser import ParserManager
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer

    answer = TEXTS[text] if reasoning_parser else TEXTS[text].partition("</think>")[2]
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "?"}], "tools": OFFERED}
    request = ChatCompletionRequest(model="m", **asked, tool_choice="auto")
    tools: Any = request.tools
    parser_cls = ParserManager.get_parser(tool_parser, reasoning_parser, enable_auto_tools=True)
    assert parser_cls is not None
    ids = tokenizer.encode(answer, add_special_tokens=False)
    prompt = tokenizer.encode("?")
    whole = parser_cls(tokenizer, tools, chat_template_kwargs={})
    reasoning, content, calls = whole.parse(
        answer, request, enable_auto_tools=True, model_output_token_ids=ids
    )
    assert bool(calls) == ("tool_call" in answer) and (reasoning is not None) == bool(reasoning_parser)
    for length in (1, 3, 4, 16, 32, len(ids)):
        parser = parser_cls(tokenizer, tools, chat_template_kwargs={})
        parts: dict[str, Any] = {"reasoning": "", "content": "", "calls": {}}
        detokenizer = IncrementalDetokenizer.from_new_request(tokenizer, engine_request(prompt))
        shown = 0
        for begin in range(0, len(ids), length):
            block = ids[begin : begin + length]
            detokenizer.update(block, False)
            finished = begin + length >= len(ids)
            so_far = detokenizer.get_next_output_text(finished, delta=False)
            delta_text, shown = so_far[shown:], len(so_far)
            found(
                parser.parse_delta(delta_text, block, request, prompt_token_ids=prompt, finished=finished),
                parts,
            )
        assert parts["reasoning"] == (reasoning or ""), length
        assert parts["content"].strip() == (content or "").strip(), length
        streamed = [parts["calls"][i] for i in sorted(parts["calls"])]
        wanted = [(call.name, json.loads(call.arguments)) for call in calls or ()]
        assert [(name, json.loads(arguments)) for name, arguments in streamed] == wanted, length


def engine_request(prompt: list[int], **params: Any) -> Any:
    """What a detokenizer reads of a request."""
    from vllm import SamplingParams
    from vllm.v1.engine import EngineCoreRequest

    return EngineCoreRequest(
        request_id="r",
        prompt_token_ids=prompt,
        mm_features=None,
        sampling_params=SamplingParams(**params),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


class Parsed:
    """One answer, parsed whole and in blocks by what serves diffusion models."""

    def __init__(
        self, tokenizer: Any, text: str, tool_parser: str | None, reasoning_parser: str | None, **asked: Any
    ) -> None:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.parser import ParserManager

        self.tokenizer = tokenizer
        self.parser_cls: Any = ParserManager.get_parser(tool_parser, reasoning_parser, enable_auto_tools=True)
        messages: Any = [{"role": "user", "content": "?"}]
        self.request: Any = ChatCompletionRequest(model="m", messages=messages, **asked)
        self.prompt = tokenizer.encode("?")
        self.ids = tokenizer.encode(text, add_special_tokens=False)
        self.parser().adjust_request(self.request)
        whole = self.parser()
        whole.set_prompt_token_ids(self.prompt)
        self.reasoning, self.content, calls = whole.parse(
            text, self.request, enable_auto_tools=True, model_output_token_ids=self.ids
        )
        self.calls = [(call.name, json.loads(call.arguments)) for call in calls or ()]

    def parser(self) -> Any:
        return self.parser_cls(self.tokenizer, self.request.tools, chat_template_kwargs={})

    def streamed(self, length: int, ids: Sequence[int] = (), **params: Any) -> dict[str, Any]:
        """What a stream of blocks of a length has, and the last delta."""
        from vllm.v1.engine.detokenizer import IncrementalDetokenizer

        ids = ids or self.ids
        more = {"skip_special_tokens": self.request.skip_special_tokens, **params}
        detokenizer = IncrementalDetokenizer.from_new_request(
            self.tokenizer, engine_request(self.prompt, **more)
        )
        parser = self.parser()
        parts: dict[str, Any] = {"reasoning": "", "content": "", "calls": {}, "last": None}
        for begin in range(0, len(ids), length):
            sent = detokenizer.num_output_tokens()
            stopped = detokenizer.update(list(ids[begin : begin + length]), False)
            finished = stopped is not None or begin + length >= len(ids)
            text = detokenizer.get_next_output_text(finished, delta=True)
            parts["last"] = parser.parse_delta(
                text, detokenizer.output_token_ids[sent:], self.request, self.prompt, finished=finished
            )
            found(parts["last"], parts)
            if finished:
                break
        calls: Any = parts["calls"]
        parts["calls"] = [(name, json.loads(arguments)) for _, (name, arguments) in sorted(calls.items())]
        return parts


LENGTHS = (1, 4, 16, 32, 256)


@pytest.mark.parametrize("name", ToolParserManager.list_registered())
def test_every_tool_parser(name: str, tmp_path: Path) -> None:
    """Streams what it makes of the whole answer, in blocks of every length; others are held."""
    sample = TOOLS.get(name)
    if sample is None:
        assert name in HELD_TOOL_PARSERS
        return
    tokenizer = tokenizer_with(tmp_path, sample.marks)
    for lead in ("", "Well, then. ") if sample.leads else ("",):
        parsed = Parsed(tokenizer, lead + sample.text, name, None, tools=TYPED, tool_choice="auto")
        assert len(parsed.calls) == sample.calls
        for length in LENGTHS:
            parts = parsed.streamed(length)
            assert parts["calls"] == parsed.calls, length
            assert parts["content"].strip() == (parsed.content or "").strip(), length


@pytest.mark.parametrize("name", ReasoningParserManager.list_registered())
def test_every_reasoning_parser(name: str, tmp_path: Path) -> None:
    samples: tuple[Sample, ...] = REASONING.get(name, ())
    if not samples:
        assert name in HELD_REASONING_PARSERS
        return
    tokenizer = tokenizer_with(tmp_path, samples[0].marks)
    for sample in samples:
        parsed = Parsed(tokenizer, sample.text, None, name)
        for length in LENGTHS:
            parts = parsed.streamed(length)
            assert (parts["reasoning"], parts["content"]) == (parsed.reasoning or "", parsed.content or "")


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("stop", ["User:", "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz"])
@pytest.mark.parametrize(("tool_parser", "reasoning_parser"), PAIRS)
def test_text_that_a_stop_string_holds_back(
    tokenizer: Any, tool_parser: str, reasoning_parser: str | None, stop: str, length: int
) -> None:
    """Its ids arrive before it; the parsers see both together."""
    lead = "<think>First.</think>" if reasoning_parser else ""
    text = f"{lead}I shall look. {CALLS}"
    parsed = Parsed(tokenizer, text, tool_parser, reasoning_parser, tools=OFFERED, tool_choice="auto")
    more = tokenizer.encode("\nUser: no", add_special_tokens=False) if stop == "User:" else []
    parts = parsed.streamed(length, [*parsed.ids, *more], stop=[stop])
    assert parts["calls"] == parsed.calls and len(parsed.calls) == 2
    assert parts["content"].strip() == (parsed.content or "").strip()
    assert parts["reasoning"] == (parsed.reasoning or "")


@pytest.mark.parametrize("length", LENGTHS)
def test_end_tokens_behind_an_answer(tokenizer: Any, length: int) -> None:
    """Parsers ask for the text of special tokens: these have none, whole or streamed."""
    from vllm.v1.diffusion.frontend.closed_calls import ClosedCalls

    text = "<think>First.</think>" + CALLS
    parsed = Parsed(tokenizer, text, "hermes", "qwen3", tools=OFFERED, tool_choice="auto")
    ids = [*parsed.ids, *[END] * 20]
    assert not parsed.request.skip_special_tokens
    parts = parsed.streamed(length, ids)
    assert (parts["content"].strip(), parts["calls"]) == ("", parsed.calls)
    assert isinstance(parts["last"], ClosedCalls)
    whole = parsed.parser().parse(tokenizer.decode(ids), parsed.request, True, ids)
    assert (whole[1] or "").strip() == "" and len(whole[2]) == 2
