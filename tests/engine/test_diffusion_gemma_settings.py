# SPDX-License-Identifier: Apache-2.0
"""What DiffusionGemma's files and an engine's options say; no engine is started."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.engine.conftest import GOLDEN


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the checkpoint whose files may be changed."""
    return Path(shutil.copytree(GOLDEN / "diffusion_gemma", tmp_path / "diffusion_gemma"))


def change(file: Path, **values: Any) -> None:
    """Sets members of a JSON file; None takes one away."""
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def configured(folder: Path, **settings: Any) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(model=str(folder), dtype="float32", **settings).create_engine_config()


def test_the_checkpoint_s_own_settings(folder: Path) -> None:
    change(
        folder / "generation_config.json",
        confidence_threshold=0.02,
        stability_threshold=3,
        max_denoising_steps=7,
        t_max=0.9,
        t_min=0.1,
        sampler_config={"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.7},
    )
    config = configured(folder).diffusion_config
    numbers = {"confidence_threshold": 0.02, "stability_threshold": 3, "t_max": 0.9, "t_min": 0.1}
    assert config.numbers.items() >= (numbers | {"entropy_bound": 0.7}).items() and config.steps == 7
    assert (config.block_length, config.algorithm, config.mask_token_id) == (16, "renoise", None)
    given = configured(folder, diffusion_config={"steps": 5, "t_max": 2.0}).diffusion_config
    assert (given.steps, given.numbers["t_max"], given.numbers["t_min"]) == (5, 2.0, 0.1)


def test_missing_settings_have_published_defaults(folder: Path) -> None:
    from vllm import SamplingParams
    from vllm.v1.diffusion.request.resolve import resolve_decoding

    (folder / "generation_config.json").write_text("{}")
    decoding = resolve_decoding(SamplingParams(), configured(folder).diffusion_config)
    assert decoding.steps == 48
    assert decoding.values == {
        "entropy_bound": 0.1,
        "t_max": 0.8,
        "t_min": 0.4,
        "stability_threshold": 1.0,
        "confidence_threshold": 0.005,
    }


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"sampler_config": {"_cls_name": "OtherConfig"}}, "sampler_config='OtherConfig' is not known"),
        ({"t_min": -1.0}, "t_min"),
        ({"t_min": 0.8}, "must leave t_max=0.8 above t_min=0.8"),
        ({"max_denoising_steps": 0}, "max_denoising_steps=0 must be"),
    ],
    ids=("sampler", "t_min", "order", "steps"),
)
def test_settings_that_are_not_known_are_refused(folder: Path, values: Any, named: str) -> None:
    change(folder / "generation_config.json", **values)
    with pytest.raises(ValueError, match=named):
        configured(folder)


def test_the_length_of_answers_is_the_request_s(folder: Path) -> None:
    """``max_new_tokens`` of the generation config is no limit of the server's, as upstream has it."""
    config = configured(folder).model_config
    assert config.get_diff_sampling_param().get("max_tokens") is None


def test_as_many_requests_as_elsewhere(folder: Path) -> None:
    """Upstream lowers the number to 8 for buffers that this loop does not have."""
    elsewhere = configured(GOLDEN / "sdar").scheduler_config.max_num_seqs
    assert configured(folder).scheduler_config.max_num_seqs == elsewhere > 8
    assert configured(folder).use_v2_model_runner


@pytest.mark.parametrize("form", ["global_head_dim", "per_layer_config"])
def test_both_forms_of_the_layers_heads(folder: Path, form: str) -> None:
    if form == "per_layer_config":
        file = folder / "config.json"
        text = json.loads(file.read_text())["text_config"]
        heads = {"head_dim": text.pop("global_head_dim"), "num_key_value_heads": 1}
        del text["num_global_key_value_heads"]
        change(file, text_config=text | {"per_layer_config": {"1": heads, "3": heads}})
    text = configured(folder).model_config.hf_text_config
    layers = [text.per_layer_config[i] for i in range(4)]
    assert [(layer.head_dim, layer.num_key_value_heads) for layer in layers] == [(32, 2), (64, 1)] * 2


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"hidden_activation": "silu"}, "hidden_activation='silu' is not known"),
        ({"attention_bias": True}, "attention_bias=True is not known"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention='all' is not known"),
    ],
    ids=("activation", "bias", "attention"),
)
def test_other_mathematics_are_refused(folder: Path, values: dict[str, Any], named: str) -> None:
    file = folder / "config.json"
    change(file, text_config=json.loads(file.read_text())["text_config"] | values)
    with pytest.raises(ValueError, match=named):
        configured(folder)


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size > 1 is not supported"),
        ({"async_scheduling": True}, "async_scheduling=True is not supported"),
        ({"diffusion_config": {"mask_token_id": 3}}, "mask_token_id=3 has no effect"),
        ({"diffusion_config": {"algorithm": "entropy"}}, "algorithm='entropy' is not for"),
        ({"max_num_batched_tokens": 20, "max_model_len": 16}, "max_num_batched_tokens=20 is too small"),
        (
            {"enable_lora": True, "lora_target_modules": ["o_proj"]},
            "does not support: enable_lora with models of experts",
        ),
    ],
    ids=("stages", "async", "mask", "algorithm", "budget", "adapters"),
)
def test_options_that_cannot_be_are_refused(folder: Path, option: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        configured(folder, **option)


def test_two_scalars_of_a_layer_that_differ_are_refused() -> None:
    """One is for causal passes; upstream lets the last one loaded stand for both."""
    from vllm.model_executor.models.diffusion_gemma_text import DiffusionGemmaForBlockDiffusion

    check = DiffusionGemmaForBlockDiffusion._check_scalars
    model: Any = SimpleNamespace(model=SimpleNamespace(start_layer=0, end_layer=1))
    one, other = torch.tensor([0.5]), torch.tensor([0.25])
    check(model, {"0": one}, {"0": one.clone()})
    check(model, {}, {"0": one})
    with pytest.raises(ValueError, match=r"encoder.*0\.layer_scalar=0\.5 and .*=0\.25 differ"):
        check(model, {"0": one}, {"0": other})
