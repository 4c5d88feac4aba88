# SPDX-License-Identifier: Apache-2.0
"""Characters of several bytes, a token each, which blocks may split; and a server with options of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.conftest import MODEL, client_of, serving

# The model sorts digits; with this tokenizer they are bytes, so it writes an emoji and two letters.
BYTES = dict(zip("123456789", "😀é€".encode(), strict=True))
PROMPT = [ord(char) for char in "sort 543219876="]
ANSWER = "😀é€"


@pytest.fixture(scope="module")
def bytes_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from vllm.v1.diffusion import bundled_path

    folder = tmp_path_factory.mktemp("bytes") / "model"
    shutil.copytree(bundled_path(), folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {
        f"<0x{BYTES[t]:02X}>" if t in BYTES else t: token_id for t, token_id in vocab.items()
    }
    steps = [{"type": "ByteFallback"}, {"type": "Fuse"}]
    tokenizer["decoder"] = {"type": "Sequence", "decoders": steps}
    path.write_text(json.dumps(tokenizer))
    options = ["--scheduling-policy", "priority", "--enable-prompt-tokens-details"]
    with serving(folder, folder.parent / "log", *options) as running:
        yield running


@pytest.fixture(scope="module")
def client(bytes_server: Any) -> Any:
    return client_of(bytes_server)


def ask(client: Any, block_length: Any, **parameters: Any) -> Any:
    extra = {"vllm_xargs": {"diffusion_block_length": block_length}, **parameters.pop("extra", {})}
    parameters = {"max_tokens": 24, **parameters}
    return client.completions.create(model=MODEL, prompt=PROMPT, extra_body=extra, **parameters)


@pytest.mark.parametrize("block_length", [1, 2, 4, 8, 16])
def test_a_character_that_blocks_split_comes_whole(client: Any, block_length: int) -> None:
    assert ask(client, block_length).choices[0].text == ANSWER
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(ask(client, block_length, stream=True, stream_options=options))
    texts = [c.choices[0].text for c in chunks if c.choices]
    assert "".join(texts) == ANSWER
    assert all("\ufffd" not in text for text in texts)
    # Usage counts tokens, also those that are no whole character yet.
    counted = [c.usage.completion_tokens for c in chunks if c.choices]
    assert counted == sorted(counted)
    assert counted[0] == min(block_length, len(PROMPT) // block_length * block_length + block_length - 15)
    assert counted[-1] == chunks[-1].usage.completion_tokens == 10
    assert all(c.usage.prompt_tokens == len(PROMPT) for c in chunks)


@pytest.mark.parametrize("max_tokens", range(1, 10))
def test_a_cut_within_a_character_is_the_same_in_a_stream(client: Any, max_tokens: Any) -> None:
    whole = ask(client, 2, max_tokens=max_tokens)
    chunks = [c for c in ask(client, 2, max_tokens=max_tokens, stream=True) if c.choices]
    assert "".join(c.choices[0].text for c in chunks) == whole.choices[0].text
    assert whole.usage.completion_tokens == max_tokens
    assert whole.choices[0].text.rstrip("\ufffd") == "😀é€".encode()[:max_tokens].decode(errors="ignore")


def test_a_stop_string_of_split_bytes(client: Any) -> None:
    for block_length in (1, 2, 16):
        choices = [c.choices[0] for c in ask(client, block_length, stop="é", stream=True)]
        assert "".join(c.text for c in choices) == "😀"
        assert choices[-1].stop_reason == "é"


def test_a_stream_interval_joins_blocks(client: Any) -> None:
    def texts(**extra: Any) -> Any:
        chunks = ask(client, 1, stream=True, extra=extra)
        return [c.choices[0].text for c in chunks]

    assert len(texts(stream_interval=4)) < len(texts())
    assert "".join(texts(stream_interval=4)) == ANSWER


def test_a_priority_where_the_scheduler_heeds_it(client: Any) -> None:
    assert ask(client, 16, extra={"priority": 3}).choices[0].text == ANSWER


def test_the_benchmark_reports_denoising(bytes_server: Any, tmp_path: Path) -> None:
    """With one step a block no step is left for upstream's formula, which takes one off for a commit."""
    options = {
        "backend": "openai",
        "base-url": bytes_server.url,
        "model": MODEL,
        "tokenizer": str(bytes_server.log.parent / "model"),
        "dataset-name": "random",
        "random-input-len": "32",
        "random-output-len": "32",
        "num-prompts": "3",
        "num-warmups": "0",
        "result-dir": str(tmp_path),
        "result-filename": "result.json",
        "extra-body": json.dumps(
            {"vllm_xargs": {"diffusion_algorithm": "low_confidence_static", "diffusion_steps": 1}}
        ),
    }
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "serve"]
    command += [word for name, value in options.items() for word in (f"--{name}", value)]
    command += ["--ignore-eos", "--save-result", "--disable-tqdm"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Diffusion Decoding" in done.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    # Prompts of 32 tokens end with a block, and 32 tokens are two more.
    assert result["diffusion_denoising_steps"] == 3 * 2
    assert result["diffusion_steps_per_canvas"] == 1
    assert result["diffusion_committed_per_step"] == 16
    assert result["diffusion_committed_tokens"] == 3 * 32
