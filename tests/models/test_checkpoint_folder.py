"""Checkpoint folders: the published layout, the tokenizer, and a training run in miniature."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tinydlm import train
from tinydlm.checkpoint import config_json, load, parse_config, published_name, save
from tinydlm.network import Network, NetworkConfig
from tinydlm.vocab import CHARACTERS, EOS, MASK, UNK, decode, encode

FAMILIES = ["sdar", "llada"]
GOLDEN = Path(__file__).parents[1] / "golden"
MASK_NAMES = {"sdar": "<|MASK|>", "llada": "<|mdm_mask|>"}


def tiny(family: str) -> Network:
    torch.manual_seed(2)
    shape = {"hidden_size": 64, "ffn_size": 96, "layers": 3, "heads": 2, "kv_heads": 2}
    return Network(NetworkConfig(family, **shape)).eval()


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(family: str, tmp_path: Path) -> Path:
    save(tiny(family), tmp_path / family)
    return tmp_path / family


def test_weights_survive_a_round_trip_rounded_to_bfloat16(family: str, folder: Path) -> None:
    stored = load(folder).state_dict()
    for name, weight in tiny(family).state_dict().items():
        assert torch.equal(stored[name], weight.bfloat16().float()), name
    with safe_open(folder / "model.safetensors", "pt") as weights:
        names = weights.keys()
        assert {weights.get_slice(name).get_dtype() for name in names} == {"BF16"}


def test_an_unknown_weight_is_refused(folder: Path, family: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers" if family == "sdar" else "n_layers"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="unknown weights"):
        load(folder)


def test_sdar_names_and_config_are_the_published_ones() -> None:
    golden = load(GOLDEN / "sdar")
    with safe_open(GOLDEN / "sdar" / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
    assert {published_name("sdar", name) for name in golden.state_dict()} == names
    published = json.loads((GOLDEN / "sdar" / "config.json").read_text())
    ours = config_json(golden.config)
    assert set(ours) <= set(published) | {"dtype", "pad_token_id"}
    tokens = {"bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id", "dtype"}
    assert all(ours[key] == published[key] for key in set(ours) - tokens)


def test_llada_names_are_the_published_ones() -> None:
    names = {published_name("llada", name) for name in tiny("llada").state_dict()}
    layer = ["attn_norm", "q_proj", "k_proj", "v_proj", "attn_out"]
    layer += ["ff_norm", "ff_proj", "up_proj", "ff_out"]
    expected = {f"model.transformer.blocks.{i}.{part}.weight" for i in range(3) for part in layer}
    assert names == expected | {f"model.transformer.{part}.weight" for part in ("wte", "ln_f", "ff_out")}


def test_config_survives_a_round_trip(family: str) -> None:
    config = tiny(family).config
    assert parse_config(json.loads(json.dumps(config_json(config)))) == config


def test_tokenizer_in_transformers(family: str, folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    printable = "".join(CHARACTERS) + "  two  spaces "
    assert tokenizer.encode(printable) == encode(printable) == [ord(c) for c in printable]
    assert tokenizer.decode(encode(printable)) == printable
    assert tokenizer.encode("aé\U0001f600b") == [97, UNK, UNK, 98]
    assert tokenizer.encode(f"1<|endoftext|>{MASK_NAMES[family]}2") == [49, EOS, MASK, 50]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (EOS, EOS)
    assert (tokenizer.mask_token_id, tokenizer.unk_token_id) == (MASK, UNK)
    answer = [*encode("1423/2341"), EOS, EOS]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "1423/2341" == decode(answer)
    assert len(tokenizer) == 128
    assert all(tokenizer.convert_ids_to_tokens(i) for i in range(128))
    chat = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "add 1+1="},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "add 482+917="},
    ]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "add 482+917="


def test_a_short_training_learns_and_writes_log_and_checkpoint(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = "--hidden 64 --ffn 64 --layers 1 --heads 2 --kv-heads 2 --block 8"
    run = "--device cpu --steps 40 --batch 20 --warmup 5 --log-every 10 --eval-every 1000"
    paths = ["--out", str(tmp_path / "out"), "--log", str(tmp_path / "log.jsonl")]
    command = ["train", "--family", family, *shape.split(), *run.split(), *paths]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(train, "evaluate", lambda network, count: {"block": network.config.block_size})
    train.main()
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if "loss" in line]
    assert len(losses) == 4
    assert losses[-1] < 0.8 * losses[0]
    assert log[0]["config"]["family"] == family
    assert log[-1]["saved"] == {"block": 8 if family == "sdar" else 16}
