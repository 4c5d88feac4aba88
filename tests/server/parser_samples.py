# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF001  (DeepSeek's marks have wide bars)
"""Answers as upstream's parsers read them, for each name under which one is registered."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

WEATHER: dict[str, Any] = {"town": "Rome é", "days": [1, 2]}
TIDES: dict[str, Any] = {"at": {"lat": 1.5}}
CALLS = [("weather", WEATHER), ("tides", TIDES)]


@dataclass(frozen=True)
class Sample:
    """An answer.

    Attributes:
        text: The answer.
        marks: Pieces of it that are one token.
        calls: Calls in it.
        leads: Whether upstream finds the calls behind other text too.
    """

    text: str
    marks: tuple[str, ...] = ()
    calls: int = 2
    leads: bool = True


def _json(name: str, arguments: dict[str, Any], key: str = "arguments") -> str:
    return json.dumps({"name": name, key: arguments}, ensure_ascii=False)


def _each(template: str, key: str = "arguments", between: str = "") -> str:
    return between.join(template.replace("JSON", _json(name, args, key)) for name, args in CALLS)


def _list(key: str = "arguments") -> str:
    return "[" + ", ".join(_json(name, args, key) for name, args in CALLS) + "]"


def _argued(call: str, argument: str, between: str = "") -> str:
    """Calls whose arguments are written one by one; strings as they are, others as JSON."""
    written = []
    for name, args in CALLS:
        parts = [
            argument.replace("KEY", key).replace(
                "VALUE", value if isinstance(value, str) else json.dumps(value)
            )
            for key, value in args.items()
        ]
        written.append(call.replace("NAME", name).replace("ARGS", "".join(parts)))
    return between.join(written)


def _args(template: str, between: str = "") -> str:
    return between.join(
        template.replace("NAME", name)
        .replace("INDEX", str(i))
        .replace("ARGS", json.dumps(args, ensure_ascii=False))
        for i, (name, args) in enumerate(CALLS)
    )


_PYTHON = "weather(town='Rome é', days=[1, 2]), tides(at={'lat': 1.5})"
_TAGS = ("<tool_call>", "</tool_call>")
_ARG = ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
_GLM = _argued(
    "<tool_call>NAME\nARGS</tool_call>", "<arg_key>KEY</arg_key>\n<arg_value>VALUE</arg_value>\n", "\n"
)
_QWEN = _argued(
    "<tool_call>\n<function=NAME>\nARGS</function>\n</tool_call>",
    "<parameter=KEY>\nVALUE\n</parameter>\n",
    "\n",
)
_DEEPSEEK = tuple(f"<｜tool▁{m}｜>" for m in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep"))
_KIMI = tuple(
    f"<|{m}|>"
    for m in (
        *("tool_calls_section_begin", "tool_calls_section_end", "tool_call_begin", "tool_call_end"),
        "tool_call_argument_begin",
    )
)

TOOLS: dict[str, Sample] = {
    "apertus": Sample(
        "<|tools_prefix|>["
        + ", ".join(json.dumps({n: a}, ensure_ascii=False) for n, a in CALLS)
        + "]<|tools_suffix|>",
        ("<|tools_prefix|>", "<|tools_suffix|>"),
    ),
    "deepseek_v3": Sample(
        "<｜tool▁calls▁begin｜>"
        + _args(
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\nARGS\n```<｜tool▁call▁end｜>", "\n"
        )
        + "<｜tool▁calls▁end｜>",
        _DEEPSEEK,
    ),
    "deepseek_v31": Sample(
        "<｜tool▁calls▁begin｜>"
        + _args("<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>ARGS<｜tool▁call▁end｜>")
        + "<｜tool▁calls▁end｜>",
        _DEEPSEEK,
    ),
    "ernie45": Sample(
        _each("<tool_call>\nJSON\n</tool_call>\n"),
        (*_TAGS, "</think>", "<response>", "</response>", "<think>", "<0x0A>"),
    ),
    "functiongemma": Sample(
        "<start_function_call>call:weather{town:<escape>Rome é<escape>,days:[1,2]}<end_function_call>",
        ("<start_function_call>", "<end_function_call>", "<escape>"),
        calls=1,
    ),
    "glm45": Sample(_GLM, (*_TAGS, *_ARG, "<think>", "</think>")),
    "glm47": Sample(_GLM.replace("\n", ""), (*_TAGS, *_ARG, "<think>", "</think>")),
    "granite": Sample("<|tool_call|>" + _list(), ("<|tool_call|>",)),
    "granite-20b-fc": Sample(_each("<function_call> JSON"), ("<function_call>",)),
    "granite4": Sample(_each("<tool_call>\nJSON\n</tool_call>", between="\n"), _TAGS),
    "hermes": Sample(_each("<tool_call>\nJSON\n</tool_call>", between="\n"), _TAGS),
    "qwen3_json": Sample(_each("<tool_call>\nJSON\n</tool_call>", between="\n"), _TAGS),
    "longcat": Sample(
        _each("<longcat_tool_call>\nJSON\n</longcat_tool_call>", between="\n"),
        ("<longcat_tool_call>", "</longcat_tool_call>"),
    ),
    "hunyuan_a13b": Sample("<tool_calls>" + _list() + "</tool_calls>"),
    "jamba": Sample("<tool_calls>" + _list() + "</tool_calls>", ("<tool_calls>", "</tool_calls>")),
    "internlm": Sample(
        "<|action_start|><|plugin|>\n" + _json("weather", WEATHER, "parameters") + "<|action_end|>",
        ("<|action_start|>", "<|plugin|>", "<|action_end|>"),
        calls=1,
    ),
    "llama3_json": Sample(_each("JSON", "parameters", "; "), ("<|python_tag|>",)),
    "llama4_json": Sample(_each("JSON", "parameters", "; "), ("<|python_tag|>",)),
    "pythonic": Sample(f"[{_PYTHON}]", leads=False),
    "llama4_pythonic": Sample(
        f"<|python_start|>[{_PYTHON}]<|python_end|>", ("<|python_start|>", "<|python_end|>"), leads=False
    ),
    "olmo3": Sample("<function_calls>" + _PYTHON.replace("), ", ")\n") + "</function_calls>"),
    "lfm2": Sample(
        f"<|tool_call_start|>[{_PYTHON}]<|tool_call_end|>", ("<|tool_call_start|>", "<|tool_call_end|>")
    ),
    "qwen3_coder": Sample(_QWEN, (*_TAGS, "<think>", "</think>")),
    "qwen3_xml": Sample(_QWEN, (*_TAGS, "<think>", "</think>")),
    "mimo": Sample(_QWEN, (*_TAGS, "<think>", "</think>")),
    "step3p5": Sample(_QWEN, (*_TAGS, "<think>", "</think>")),
    "seed_oss": Sample(
        _QWEN.replace("tool_call>", "seed:tool_call>"),
        ("<seed:tool_call>", "</seed:tool_call>", "<seed:think>", "</seed:think>"),
    ),
    "kimi_k2": Sample(
        "<|tool_calls_section_begin|>"
        + _args("<|tool_call_begin|>functions.NAME:INDEX<|tool_call_argument_begin|>ARGS<|tool_call_end|>")
        + "<|tool_calls_section_end|>",
        (*_KIMI, "<think>", "</think>"),
    ),
    "minimax_m2": Sample(
        "<minimax:tool_call>\n"
        + _argued('<invoke name="NAME">\nARGS</invoke>\n', '<parameter name="KEY">VALUE</parameter>\n')
        + "</minimax:tool_call>",
        ("<minimax:tool_call>", "</minimax:tool_call>", "<think>", "</think>"),
    ),
    "xlam": Sample(_list(), leads=False),
    "mistral": Sample(
        _args("[TOOL_CALLS]NAMEARGS"), ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]")
    ),
    "gigachat3": Sample(
        "function call<|role_sep|>\n" + _json("weather", WEATHER),
        ("<|role_sep|>", "<|message_sep|>"),
        calls=1,
    ),
}

_THINK = ("<think>", "</think>", *_TAGS, *_ARG)
_THOUGHTS = (
    "<think>First the weather,\nthen.</think>The answer is 42 < 43.",
    "hm, so</think>The answer.",
    "The answer.",
    "<think>never ends, does",
)
_MARKS_OF: dict[str, tuple[str, ...]] = {
    "ernie45": ("<think>", "</think>", "<response>", "</response>", "<0x0A>"),
    "gemma4": ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>', "<|turn>", "<turn|>"),
    "mistral": ("[THINK]", "[/THINK]", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
    "seed_oss": ("<seed:think>", "</seed:think>", "<seed:tool_call>", "</seed:tool_call>"),
}
_TEXTS_OF: dict[str, tuple[str, ...]] = {
    "ernie45": ("<think>\nhm, so\n</think>\n\n<response>\nThe answer is 42 < 43.\n</response>\n",),
    "gemma4": ("<|channel>thought\nhm, so<channel|>The answer is 42 < 43.", "The answer."),
    "granite": ("Here is my thought process: hm, so Here is my response: The answer.", "The answer."),
    "hunyuan_a13b": ("<think>\nhm, so\n</think>\n<answer>\nThe answer.\n</answer>", "The answer."),
    "mistral": ("[THINK]hm, so[/THINK]The answer is 42 < 43.", "The answer."),
    "seed_oss": ("<seed:think>hm, so</seed:think>The answer is 42 < 43.", "hm, so</seed:think>The answer."),
}
_DEFAULT = (
    *("deepseek_r1", "deepseek_v3", "deepseek_v4", "deepseek_v41", "glm45", "glm47"),
    *("granite_thinking_parser", "holo2", "hy_v3", "hy_v4", "kimi_k2", "ling3", "mimo", "minicpmv"),
    *("minimax_m2", "minimax_m2_append_think", "nemotron_v3", "qwen3", "step3", "step3p5"),
)

REASONING: dict[str, tuple[Sample, ...]] = {
    name: tuple(Sample(text, _MARKS_OF.get(name, _THINK)) for text in _TEXTS_OF.get(name, _THOUGHTS))
    for name in (*_DEFAULT, *_TEXTS_OF)
}
"""Answers with reasoning."""
