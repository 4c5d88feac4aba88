# SPDX-License-Identifier: Apache-2.0
"""Text that a grammar constrains satisfies it, whatever the model, algorithm and temperature."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.engine.checkpoints import fast_dllm_v2
from tests.engine.conftest import GOLDEN, SETTINGS
from tests.engine.fresh_puzzles import defaults, puzzles_of
from tests.engine.vocabularies import write_tokenizer
from vllm import DiffusionParams, SamplingParams  # type: ignore[attr-defined]  # lazy
from vllm.sampling_params import StructuredOutputsParams

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "ok": {"type": "boolean"},
    },
    "required": ["name", "tags", "age", "ok"],
    "additionalProperties": False,
}
REGEX = "[1-4]{4}(/[1-4]{4}){3}"
CHOICE = ["yes", "no", "perhaps not"]
EBNF = 'root ::= sum\nsum ::= term ("+" term){1,4}\nterm ::= [0-9]{1,3} | "(" [a-z] ")"'
SUM = r"(?:[0-9]{1,3}|\([a-z]\))(?:\+(?:[0-9]{1,3}|\([a-z]\))){1,4}"


def fits_schema(text: str) -> bool:
    jsonschema.validate(json.loads(text), SCHEMA)
    return True


KINDS: dict[str, tuple[dict[str, Any], Any]] = {
    "schema": ({"json": SCHEMA}, fits_schema),
    "regex": ({"regex": REGEX}, lambda text: re.fullmatch(REGEX, text)),
    "choice": ({"choice": CHOICE}, lambda text: text in CHOICE),
    "grammar": ({"grammar": EBNF}, lambda text: re.fullmatch(SUM, text)),
    # Special tokens have names of many characters and no text.
    "anything": ({"regex": ".{40}"}, lambda text: len(text) == 40),
}
BLOCK_CAUSAL = ["low_confidence_static", "low_confidence_dynamic", "sequential", "entropy_bounded"]


def golden_with_text(family: str, folder: Path, eos: int, mask: int) -> Path:
    """A golden checkpoint with a byte-level tokenizer instead of its own."""
    shutil.copytree(GOLDEN / family, folder)
    write_tokenizer(folder, "PreTrainedTokenizerFast", 512, eos=eos, mask=mask)
    (folder / "special_tokens_map.json").unlink()
    return folder


@pytest.fixture(scope="module")
def sdar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Block-causal, asynchronous, and short of cache, so that requests are preempted."""
    folder = golden_with_text("sdar", tmp_path_factory.mktemp("sdar") / "sdar", eos=490, mask=508)
    yield from engine_of(
        folder, async_scheduling=True, max_model_len=256, block_size=32, num_gpu_blocks_override=24
    )


@pytest.fixture(scope="module")
def llada(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Bidirectional, with a cache, asynchronous."""
    folder = golden_with_text("llada", tmp_path_factory.mktemp("llada") / "llada", eos=500, mask=505)
    yield from engine_of(
        folder,
        async_scheduling=True,
        max_model_len=256,
        diffusion_config={"block_length": 16, "cache": "dual"},
    )


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Row i predicts token i + 1; a block begins with an anchor."""
    yield from engine_of(fast_dllm_v2(tmp_path_factory.mktemp("fast_dllm_v2")), diffusion_config=None)


def engine_of(folder: Path, **settings: Any) -> Iterator[Any]:
    from vllm import LLM

    # Without it a random model may write white space for ever.
    compact = {"backend": "xgrammar", "disable_any_whitespace": True}
    llm = LLM(**SETTINGS | {"model": str(folder), "structured_outputs_config": compact} | settings)
    yield llm
    llm.llm_engine.engine_core.shutdown()


def check(llm: Any, algorithms: list[str], count: int, max_tokens: int = 120) -> None:
    """Every kind, many algorithms, temperatures and block lengths in one batch."""
    kinds = [*KINDS, None]
    asked, params = [], []
    for i in range(count):
        kind, algorithm = kinds[i % len(kinds)], algorithms[i % len(algorithms)]
        asked.append(kind)
        more: dict[str, Any] = {"entropy_bound": 2.0} if algorithm == "entropy_bounded" else {}
        if algorithm in ("low_confidence_dynamic", "threshold"):
            more = {"threshold": (0.01, 0.5)[i % 2]}
        params.append(
            SamplingParams(
                temperature=(0, 0.7, 1.5)[i % 3],
                top_p=(1.0, 0.8)[i % 2],
                seed=i,
                max_tokens=max_tokens,
                structured_outputs=StructuredOutputsParams(**KINDS[kind][0]) if kind else None,
                extra_args=DiffusionParams(
                    algorithm=algorithm, block_length=(8, 16)[i % 2], **more
                ).to_extra_args(),
            )
        )
    prompts = [f"Question {i}: " + "why? " * (i % 5) for i in range(count)]
    together = llm.generate(prompts, params, use_tqdm=False)
    for kind, output in zip(asked, together, strict=True):
        answer = output.outputs[0]
        if kind is not None:
            assert KINDS[kind][1](answer.text), (kind, answer)
            assert answer.finish_reason == "stop", answer
    # Whatever shares the batch: a request alone gives the same.
    for i in range(0, len(params), 7):
        (alone,) = llm.generate(prompts[i : i + 1], params[i], use_tqdm=False)
        assert alone.outputs[0].token_ids == together[i].outputs[0].token_ids


def test_block_causal(sdar: Any) -> None:
    check(sdar, BLOCK_CAUSAL, 48)


def test_bidirectional(llada: Any) -> None:
    check(llada, ["low_confidence_static", "threshold", "sequential", "low_confidence_dynamic"], 24)


def test_shifted(shifted: Any) -> None:
    check(shifted, ["sub_blocks", "low_confidence_static"], 24)


@pytest.mark.parametrize("algorithm", ["low_confidence_dynamic", "low_confidence_static"])
def test_a_grammar_that_agrees_costs_nothing(bundled: Any, algorithm: str) -> None:
    puzzles = puzzles_of("sudoku")[:100]
    params = defaults(bundled)
    params.extra_args = DiffusionParams(algorithm=algorithm).to_extra_args()
    right, forwards = {}, {}
    for regex in (None, REGEX):
        params.structured_outputs = StructuredOutputsParams(regex=regex) if regex else None
        outputs = bundled.generate([p.prompt for p in puzzles], params, use_tqdm=False)
        right[regex] = sum(p.is_right(o.outputs[0].text) for p, o in zip(puzzles, outputs, strict=True))
        forwards[regex] = sum(o.outputs[0].diffusion.steps for o in outputs)
    assert right[REGEX] >= right[None] - 1 >= 97, right
    assert forwards[REGEX] <= forwards[None], forwards
