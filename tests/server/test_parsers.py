# SPDX-License-Identifier: Apache-2.0
"""Tool and reasoning parsers see a block at a time and find what they find in the whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.engine.vocabularies import write_tokenizer

MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
FIRST_MARK, END, MASK = 300, 310, 311
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("weather", "tides")
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
    from vllm.tokenizers import get_tokenizer

    folder: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, "PreTrainedTokenizerFast", 312, eos=END, mask=MASK)
    (folder / "tokenization_own.py").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["auto_map"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    for i, mark in enumerate(MARKS, FIRST_MARK):
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
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "?"}], "tools": TOOLS}
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


def engine_request(prompt: list[int]) -> Any:
    """What a detokenizer reads of a request."""
    from vllm import SamplingParams
    from vllm.v1.engine import EngineCoreRequest

    return EngineCoreRequest(
        request_id="r",
        prompt_token_ids=prompt,
        mm_features=None,
        sampling_params=SamplingParams(),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
