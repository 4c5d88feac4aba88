# SPDX-License-Identifier: Apache-2.0
"""``vllm diffuse --describe``: what is resolved for a model, and from where."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.describing import arguments, described
from tests.engine import checkpoints
from tests.engine.conftest import GOLDEN
from vllm.v1.diffusion.cli.describe import describe
from vllm.v1.diffusion.request.params import parameters


def test_what_a_configuration_says_comes_before_the_table() -> None:
    found = described(describe=str(GOLDEN / "llada"), dtype="float32")
    assert found["family"] == ("LLaDA", "family table")
    assert found["generation_loop"][0] == "full_diffusion"
    assert found["mask_token_id"] == (505, "config.json")
    assert found["block_length"] == (32, "family table")
    assert found["steps"][0] == 32
    assert found["cache"] == ("none", "family table")
    assert found["stop_at_eos"] == (False, "family table")
    assert found["end_token_ids"] == ([500, 501], "config.json, tokenizer")
    assert found["eos_token_ids"] == ([500], "tokenizer, generation_config.json")
    assert found["chat_template"][1] == "tokenizer_config.json"
    assert found["dtype"] == ("float32", "command line")
    assert found["head_size"] == (32, "config.json")


def test_what_a_configuration_leaves_out_is_the_family_s(tmp_path: Path) -> None:
    found = described(describe=str(checkpoints.llada2(tmp_path)))
    assert found["mask_token_id"] == (156895, "family table")
    assert found["algorithm"] == ("low_confidence_dynamic", "family table")
    assert found["stop_at_eos"] == (True, "family table")
    assert found["chat_template"][0] is None
    assert found["eos_token_ids"] == ([156892], "tokenizer")
    assert found["max_model_len"] == (32768, "config.json")
    found = described(describe=str(checkpoints.fast_dllm_v2(tmp_path / "other")))
    assert found["eos_token_ids"] == ([505], "tokenizer, config.json")
    assert found["block_length"] == (32, "config.json")
    assert "cache" not in found


def test_a_smaller_vocabulary_has_the_mask_token_of_its_tokenizer(tmp_path: Path) -> None:
    for family, folder in (("llada", tmp_path / "one"), ("sdar", tmp_path / "other")):
        shutil.copytree(GOLDEN / family, folder)
        config = json.loads((folder / "config.json").read_text())
        del config["mask_token_id"]
        (folder / "config.json").write_text(json.dumps(config))
    assert described(describe=str(tmp_path / "one"))["mask_token_id"] == (505, "tokenizer")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        content = json.loads((folder / name).read_text())
        content.pop("mask_token", None)
        (folder / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"mask_token_id=151669 \(family table\) is outside the vocabulary"):
        described(describe=str(folder))


def test_the_command_line_comes_first() -> None:
    found = described(describe=str(GOLDEN / "dream"), algorithm="threshold", threshold=0.5, max_model_len=512)
    assert found["algorithm"] == ("threshold", "command line")
    assert found["threshold"] == (0.5, "command line")
    assert described(describe=str(GOLDEN / "dream"), cache="dual")["cache"] == ("dual", "command line")
    assert found["block_length"] == (512, "family table: a response is one block")


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({}, {"steps"}),
        ({"algorithm": "low_confidence_dynamic"}, {"steps", "threshold"}),
        ({"algorithm": "entropy_bounded"}, {"entropy_bound"}),
        ({"algorithm": "edit", "edit_threshold": 0.5}, {"threshold", "edit_threshold"}),
        ({"algorithm": "factor", "factor": 2.0}, {"factor"}),
        ({"algorithm": "sequential", "max_steps": 3}, {"steps", "max_steps"}),
    ],
)
def test_only_what_the_algorithm_reads_is_told(given: dict[str, Any], read: set[str]) -> None:
    found = described(describe=str(GOLDEN / "llada"), **given)
    others = {"algorithm", "block_length", "cache", "likelihood", "score_samples", "score_seed"}
    assert found.keys() & parameters().keys() == read | others


@pytest.mark.parametrize("family", ["sdar", "llada"])
def test_bundled_checkpoints_stop_at_their_end_token(family: str) -> None:
    found = described(describe="", bundled=family)
    assert found["model"][1] == "bundled"
    assert found["stop_at_eos"][0] is True
    table = describe(arguments(describe="", bundled=family, json=False)).splitlines()
    assert [line.split()[0] for line in table] == list(found)


def test_what_cannot_be_described_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exclude"):
        describe(arguments(describe="a", model="b"))
    with pytest.raises(ValueError, match="diffusion_factor"):
        describe(arguments(describe=str(GOLDEN / "sdar"), factor=1.0))
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="no masked-diffusion model"):
        describe(arguments(describe=str(tmp_path)))
