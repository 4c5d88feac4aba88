# SPDX-License-Identifier: Apache-2.0
"""Bodies of requests, most of them wrong somewhere, from a seed: the same seed makes the same bodies."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"

NUMBERS: list[Any] = [
    0, 1, 2, 3, 7, 16, 33, -1, -2, 255, 256, 257, 4096, 32768, 32769, 2**31, -(2**31), 2**53, 2**63, 2**64,
    -(2**63) - 1, 10**30, 0.0, -0.0, 0.5, 0.999999, 1.0, 1.5, 2.0, 100.0, 1e-3, 1e-38, 1e-46, 1e-300, 3.4e38,
    1e39, 1e300, -1e39, True, False,
]  # fmt: skip
TEXTS: list[Any] = [
    "", " ", "a", "sudoku 1003/0300/3210/4132=", "sort 3142=", "\n\t", "\x00", "\x7f", "ä", "漢字", "👩‍👩‍👧",
    "\ud800", "a\udfffb", "<|mask|>", "<|endoftext|>", "<|hole:4|>", "1<|hole:3|>2", "<|hole:0|>", "<|hole",
    "<|hole:99999999999999999999|>", "<|hole:-1|>", "<|hole:4|><|hole:400|>", "{{ x }}", "{% for %}", "%s%n",
    "null", "NaN", "auto", "none", "0" * 300, "x" * 5000,
]  # fmt: skip
REGEXES = [
    "", "a", "[1-4]{4}", "[1-4]{4}(/[1-4]{4}){3}", "(a|b)*c", ".{20}", "\\d{2,4}-\\w+", "[^a]{3}", "yes|no",
    "[", "(", "a{2", "a{3,1}", "*", "(?=a)b", "\\1", "a{100000}", "(a{1,50}){1,50}", "[z-a]", "\\p{L}", "é+",
]  # fmt: skip
GRAMMARS = [
    'root ::= "a"', 'root ::= [0-9]{1,3} | "(" root ")"', "root ::= root", "root ::=", 'rot ::= "a"', "",
    'root ::= "a" | ""', 'start: "a" | "b"', 'root ::= other', "root ::= [\n]", 'root ::= "\\x00"',
]  # fmt: skip
ALGORITHMS = [
    "low_confidence_static", "low_confidence_dynamic", "sequential", "entropy_bounded", "threshold", "factor",
    "credit", "edit", "hierarchical", "insert_delete", "origin", "entropy", "maskgit_plus", "p2", "random",
    "renoise", "topk_margin", "low_confidence_linear", "low_confidence_spread", "sub_blocks", "d3llm",
    "confidence_threshold", "daedal", "local_leap", "multi_block", "guess", "os.system",
    "vllm.SamplingParams", "", "a.b.c",
]  # fmt: skip

SAMPLING = [
    "n", "temperature", "top_p", "top_k", "min_p", "max_tokens", "min_tokens", "seed", "stop",
    "stop_token_ids", "logprobs", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "logit_bias", "bad_words", "allowed_token_ids", "ignore_eos", "include_stop_str_in_output",
    "skip_special_tokens", "prompt_logprobs", "truncate_prompt_tokens", "priority", "echo", "best_of",
    "use_beam_search", "length_penalty", "suffix", "return_tokens_as_token_ids", "return_token_ids",
    "stream_options", "user", "cache_salt", "request_id", "add_special_tokens", "logprob_token_ids",
    "response_format", "structured_outputs", "vllm_xargs", "unheard_of",
]  # fmt: skip
OF_CHAT = [
    "messages", "tools", "tool_choice", "top_logprobs", "max_completion_tokens", "chat_template",
    "chat_template_kwargs", "add_generation_prompt", "continue_final_message", "documents",
    "parallel_tool_calls", "reasoning_effort", "verbosity", "store", "service_tier", "functions",
    "function_call", "modalities",
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A request.

    Attributes:
        path: The endpoint.
        body: The JSON body.
        changed: The fields that are not as in a plain request.
    """

    path: str
    body: dict[str, Any]
    changed: tuple[str, ...]

    def content(self) -> bytes:
        """The body as it is sent; halves of surrogate pairs are escaped."""
        return json.dumps(self.body).encode()


class Fuzzer:
    """Makes cases."""

    def __init__(self, seed: int, model: str, longest: int = 24) -> None:
        """Makes it.

        Args:
            seed: Decides all of it.
            model: The served model's name.
            longest: ``max_tokens`` of a plain request, which few cases exceed.
        """
        from vllm.v1.diffusion.request.params import parameters

        self.random = random.Random(seed)
        self.model = model
        self.longest = longest
        self._diffusion = sorted(parameters())

    def case(self) -> Case:
        """The next case."""
        rng = self.random
        chat = rng.random() < 0.4
        body: dict[str, Any] = {"model": self.model, "max_tokens": rng.randint(1, self.longest), "seed": 1}
        if chat:
            body["messages"] = [{"role": "user", "content": "sort 3142="}]
        else:
            body["prompt"] = "sort 3142="
        if rng.random() < 0.3:
            body["stream"] = True
        names = SAMPLING + (OF_CHAT if chat else ["prompt"])
        changed = rng.sample(names, rng.choice([0, 1, 1, 1, 1, 2, 2, 3]))
        if rng.random() < 0.4 and "vllm_xargs" not in changed:
            changed.append("vllm_xargs")
        for name in changed:
            body[name] = self._value(name)
        return Case(CHAT if chat else COMPLETIONS, body, tuple(changed))

    def _value(self, name: str) -> Any:
        special: dict[str, Callable[[], Any]] = {
            "vllm_xargs": self._xargs,
            "structured_outputs": self._structured,
            "response_format": self._format,
            "messages": self._messages,
            "tools": self._tools,
            "prompt": self._prompt,
            "stop": lambda: self._some(TEXTS),
            "bad_words": lambda: self._some(TEXTS),
            "stop_token_ids": lambda: self._some(NUMBERS),
            "allowed_token_ids": lambda: self._some(NUMBERS),
            "logprob_token_ids": lambda: self._some(NUMBERS),
            "logit_bias": lambda: {str(self.random.choice(NUMBERS)): self._number() for _ in range(2)},
            "n": lambda: self.random.choice([0, 1, 2, 3, -1, 129, 2**31, 2**63, 10**30, 1.5, "2"]),
        }
        maker = special.get(name)
        if maker is None or self.random.random() < 0.15:
            return self._anything(3)
        return maker()

    def _number(self) -> Any:
        return self.random.choice(NUMBERS)

    def _some(self, values: list[Any]) -> Any:
        return [self.random.choice(values) for _ in range(self.random.choice([0, 1, 1, 2, 5]))]

    def _anything(self, depth: int) -> Any:
        rng = self.random
        kind = rng.randrange(8 if depth else 4)
        if kind <= 1:
            return self._number()
        if kind == 2:
            return rng.choice(TEXTS)
        if kind == 3:
            return rng.choice([None, [], {}, True, False])
        if kind <= 5:
            return [self._anything(depth - 1) for _ in range(rng.randint(0, 3))]
        return {str(rng.choice(TEXTS)): self._anything(depth - 1) for _ in range(rng.randint(0, 2))}

    def _xargs(self) -> Any:
        rng = self.random
        made: dict[str, Any] = {}
        for name in rng.sample(self._diffusion, rng.choice([1, 1, 2, 3])):
            made["diffusion_" + name] = self._diffusion_value(name)
        if rng.random() < 0.1:
            made[rng.choice(["diffusion_unheard", "mine", ""])] = self._number()
        return made

    def _diffusion_value(self, name: str) -> Any:
        rng = self.random
        if rng.random() < 0.15:
            return self._anything(2)
        if name == "algorithm":
            return rng.choice(ALGORITHMS)
        if name == "infill":
            return rng.choice(TEXTS)
        if name in ("infill_ids", "seed_canvas", "pinned"):
            return [rng.choice([-1, -1, 50, 51, 0, 3, 2**31, 2**64, -2]) for _ in range(rng.randint(0, 12))]
        if name == "cache":
            return rng.choice(["none", "prefix", "dual", "all"])
        if name == "mode":
            return rng.choice(["diffusion", "autoregressive", "self_speculation", "x"])
        return self._number()

    def _schema(self, depth: int = 2) -> Any:
        rng = self.random
        kind = rng.choice(
            ["string", "integer", "number", "boolean", "null", "array", "object", "enum", "odd"]
        )
        if kind == "array" and depth:
            return {"type": "array", "items": self._schema(depth - 1), "maxItems": rng.choice([0, 2, -1])}
        if kind == "object" and depth:
            properties = {name: self._schema(depth - 1) for name in rng.sample("abcd", rng.randint(0, 3))}
            return {"type": "object", "properties": properties, "required": sorted(properties)[:2]}
        if kind == "enum":
            return {"enum": [self._number(), "a", None][: rng.randint(0, 3)]}
        if kind == "odd":
            return rng.choice(
                [{}, True, {"$ref": "#/x"}, {"type": "unheard"}, {"pattern": "["}, {"allOf": []}]
            )
        return {"type": kind, **({"maxLength": rng.choice([0, 3, -1, 10**9])} if kind == "string" else {})}

    def _structured(self) -> Any:
        rng = self.random
        made: dict[str, Any] = {}
        for kind in rng.sample(["json", "regex", "choice", "grammar", "json_object", "structural_tag"], 1):
            makers: dict[str, Callable[[], Any]] = {
                "json": self._schema,
                "regex": lambda: rng.choice(REGEXES),
                "choice": lambda: self._some(TEXTS),
                "grammar": lambda: rng.choice(GRAMMARS),
                "json_object": lambda: rng.choice([True, False]),
                "structural_tag": lambda: json.dumps(self._anything(2)),
            }
            made[kind] = makers[kind]()
        if rng.random() < 0.1:
            made["regex"] = rng.choice(REGEXES)
        return made

    def _format(self) -> Any:
        rng = self.random
        schema = {"name": "a", "schema": self._schema(), "strict": rng.choice([True, False])}
        return rng.choice([
            {"type": "json_object"}, {"type": "text"}, {"type": "json_schema", "json_schema": schema},
            {"type": "json_schema"}, {"type": "unheard"}, self._anything(2),
        ])  # fmt: skip

    def _messages(self) -> Any:
        rng = self.random
        roles = ["user", "assistant", "system", "tool", "developer", "unheard"]
        made: list[Any] = []
        for _ in range(rng.randint(0, 3)):
            content = rng.choice(
                [*TEXTS, None, [{"type": "text", "text": rng.choice(TEXTS)}], self._anything(2)]
            )
            made.append({"role": rng.choice(roles), "content": content})
        return made

    def _tools(self) -> Any:
        function = {"name": self.random.choice(["f", "", "a b"]), "parameters": self._schema()}
        return [{"type": "function", "function": function}]

    def _prompt(self) -> Any:
        rng = self.random
        return rng.choice([
            rng.choice(TEXTS), [rng.choice(TEXTS)] * 2, [rng.choice([1, 50, 51, 2**31, 2**64, -1])] * 3,
            [[50, 51], [52]], [], self._anything(2),
        ])  # fmt: skip
