"""The checkpoints that ship in the wheel: their size, their layout, and how well they do."""

import json
from pathlib import Path

import pytest
from tinydlm.checkpoint import config_json, load
from tinydlm.decoding import Decoding
from tinydlm.evaluate import Score, score_all
from tinydlm.tokenizer import special_tokens, tokenizer_json

ASSETS = Path(__file__).parents[2] / "vllm" / "v1" / "diffusion" / "assets"
FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
MAX_BYTES = 8_000_000
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


@pytest.fixture(params=["sdar", "llada"])
def folder(request: pytest.FixtureRequest) -> Path:
    return ASSETS / str(request.param)


def test_folder(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == FILES
    assert sum(path.stat().st_size for path in folder.iterdir()) <= MAX_BYTES
    network = load(folder)
    assert network.config.family == folder.name
    assert network.config.head_dim in CPU_HEAD_SIZES
    written = json.loads((folder / "config.json").read_text())
    assert written == config_json(network.config)
    assert json.loads((folder / "tokenizer.json").read_text()) == tokenizer_json(folder.name)
    roles = json.loads((folder / "special_tokens_map.json").read_text())
    assert roles == special_tokens(folder.name)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["temperature"] == 0.0
    assert generation["eos_token_id"] == written["eos_token_id"]


def test_accuracy(folder: Path) -> None:
    """A small sample; ``models/README.md`` has the large one."""
    network = load(folder)
    decoding = Decoding("dynamic", network.config.block_size, 0.9)
    scores: list[Score] = score_all(network, 50, 31, decoding, 32, reserved_only=True)
    for score in scores:
        assert score.accuracy >= 0.97, score
        assert score.tokens_per_forward > 1.5, score
