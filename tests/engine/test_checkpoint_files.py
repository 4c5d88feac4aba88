# SPDX-License-Identifier: Apache-2.0
"""Nothing loads as something else: what the files of a checkpoint say decides, and is checked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.describing import described
from tests.engine import layouts
from tests.engine.conftest import GOLDEN
from vllm.v1.diffusion.checkpoint.fields import check_fields
from vllm.v1.diffusion.checkpoint.generation_defaults import generation_settings
from vllm.v1.diffusion.checkpoint.known_fields import KNOWN_FIELDS
from vllm.v1.diffusion.families import FAMILIES, check_model_path
from vllm.v1.diffusion.policies.registry import built_in_policies

BY_NAME = {family.name: family for family in FAMILIES}
FOLDERS = {
    "SDAR": "sdar",
    "LLaDA": "llada",
    "LLaDA2": "llada2",
    "Dream": "dream",
    "A2D-Qwen3": "a2d-qwen3",
    "A2D-Llama": "a2d-llama",
    "Open-dLLM": "open-dllm",
    "Stable-DiffCoder": "stable-diffcoder",
    "DiffusionGemma": "diffusion_gemma",
}
PUBLISHED: list[tuple[str, dict[str, Any]]] = [
    *((name, json.loads((GOLDEN / folder / "config.json").read_text())) for name, folder in FOLDERS.items()),
    ("SDAR-MoE", layouts.SDAR_MOE),
    ("LLaDA2", layouts.LLADA2),
    ("Fast-dLLM v2", layouts.FAST_DLLM_V2),
    ("LLaDA-MoE", layouts.LLADA_MOE),
    ("LLaDA-MoE", layouts.LLADA_MOE_QUIRKS),
    ("Dream", layouts.DREAM),
]


def changed(folder: Path, source: str, **files: dict[str, Any]) -> str:
    """A golden folder with changed JSON files; a None removes an entry."""
    shutil.copytree(GOLDEN / source, folder)
    for name, entries in files.items():
        file = folder / f"{name}.json"
        content = json.loads(file.read_text()) | entries
        file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return str(folder)


def test_every_family_has_a_table() -> None:
    assert set(KNOWN_FIELDS) == set(BY_NAME)


@pytest.mark.parametrize(("family", "config"), PUBLISHED, ids=lambda p: p if isinstance(p, str) else "")
def test_published_configurations_are_known_in_full(family: str, config: dict[str, Any]) -> None:
    assert check_fields(family, config) == []


@pytest.mark.parametrize("family", KNOWN_FIELDS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_regular_causal", True),
        ("attn_logit_softcapping", 50.0),
        ("embedding_multiplier", 12.0),
        ("router_kind", "grouped"),
        ("hidden_act", "gelu"),
        ("is_causal", False),
        ("text_config", {"hidden_size": 8}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0, "llama_4_scaling_beta": 0.1}),
    ],
)
def test_a_field_that_changes_the_mathematics_is_refused_by_name(family: str, name: str, value: Any) -> None:
    if (name == "hidden_act" and family == "LLaDA") or (
        name in ("text_config", "rope_scaling") and family == "DiffusionGemma"
    ):
        name, value = "is_decoder", True  # That name has another meaning there.
    with pytest.raises(ValueError, match=rf"config.json is of another model than {family}: .*{name}"):
        check_fields(family, {"hidden_size": 128, "num_attention_heads": 4, name: value})


@pytest.mark.parametrize(
    ("family", "name", "value"),
    [
        ("SDAR", "use_sliding_window", True),
        ("SDAR", "layer_types", ["full_attention", "sliding_attention"]),
        ("SDAR", "qk_norm", False),
        ("Dream", "qk_norm", True),
        ("Dream", "head_dim", 64),
        ("Dream", "use_mrope", True),
        ("LLaDA2", "score_function", "softmax"),
        ("LLaDA2", "rotary_dim", 32),
        ("LLaDA2", "norm_head", True),
        ("LLaDA-MoE", "router_num_group", 4),
        ("Stable-DiffCoder", "use_sliding_window", True),
    ],
)
def test_a_form_that_the_network_has_not_is_refused(family: str, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        check_fields(family, {"hidden_size": 128, "num_attention_heads": 4, name: value})


def test_fields_that_are_off_or_of_training_are_let_through() -> None:
    harmless = {  # type: ignore[var-annotated]
        "some_switch": False,
        "some_factor": None,
        "some_list": [],
        "router_aux_loss_coef": 0.01,
        "hidden_dropout": 0.1,
        "transformers_version": "5.0.0",
    }
    assert check_fields("SDAR", harmless) == ["some_factor", "some_list", "some_switch"]


def test_an_engine_is_refused_and_a_user_may_say_that_a_field_is_without_effect(tmp_path: Path) -> None:
    from vllm.engine.arg_utils import EngineArgs

    folder = changed(tmp_path / "one", "sdar", config={"logit_softcap": 30.0})
    with pytest.raises(ValueError, match=r"logit_softcap=30.0 is not known"):
        EngineArgs(model=folder, max_model_len=64).create_engine_config()
    with pytest.raises(ValueError, match=r"logit_softcap=30.0 is not known"):
        described(describe=folder)
    allowed = EngineArgs(model=folder, max_model_len=64, hf_overrides={"logit_softcap": None})
    assert allowed.create_engine_config().generation_loop == "block_diffusion"


@pytest.mark.parametrize(
    ("file", "entries", "message"),
    [
        ("config", {"insert_token_id": 509}, "config.json has insert_token_id=509"),
        ("generation_config", {"delete_token_id": 490}, "generation_config.json has delete_token_id=490"),
        ("tokenizer_config", {"split_token": "<s>"}, "tokenizer_config.json has split_token"),
        (
            "tokenizer_config",
            {"added_tokens_decoder": {"509": {"content": "<|insert|>"}}},
            r"the tokenizer has '<\|insert\|>' \(id 509\)",
        ),
    ],
)
def test_tokens_that_edit_a_canvas_are_refused(
    tmp_path: Path, file: str, entries: dict[str, Any], message: str
) -> None:
    folder = changed(tmp_path / "one", "dream", **{file: entries})
    with pytest.raises(ValueError, match=message):
        described(describe=folder)


def test_a_folder_named_qwen2_is_what_its_mask_token_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from vllm.engine.arg_utils import EngineArgs

    config = EngineArgs(model=str(GOLDEN / "open-dllm"), max_model_len=64).create_engine_config()
    assert config.generation_loop == "full_diffusion"
    assert config.model_config.architecture == "OpenDLLMForCausalLM"
    said = EngineArgs(
        model=str(GOLDEN / "open-dllm"), max_model_len=64, generation_loop="autoregressive"
    ).create_engine_config()
    assert said.model_config.architecture == "Qwen2ForCausalLM"
    plain = changed(
        tmp_path / "plain",
        "open-dllm",
        config={"mask_token_id": None},
        tokenizer_config={"mask_token": None},
        special_tokens_map={"mask_token": None},
    )
    config = EngineArgs(model=plain, max_model_len=64).create_engine_config()
    assert config.generation_loop == "autoregressive"


def test_a_mask_token_under_another_autoregressive_name_is_refused(tmp_path: Path) -> None:
    from vllm.engine.arg_utils import EngineArgs

    entries = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "mask_token_id": 508}
    folder = changed(tmp_path / "one", "a2d-qwen3", config=entries)
    with pytest.raises(ValueError, match="mask_token_id=508: it is a diffusion model, of a family that"):
        EngineArgs(model=folder, max_model_len=64).create_engine_config()
    entries = {"architectures": ["LlamaForCausalLM"]}
    folder = changed(tmp_path / "two", "stable-diffcoder", config=entries)
    config = EngineArgs(model=folder, max_model_len=64).create_engine_config()
    assert config.model_config.architecture == "StableDiffcoderForCausalLM"


def test_wedlm_under_its_backbone_s_name(tmp_path: Path) -> None:
    from vllm.engine.arg_utils import EngineArgs

    entries = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    folder = changed(tmp_path / "one", "wedlm", config=entries)
    config = EngineArgs(model=folder, max_model_len=64).create_engine_config()
    assert config.generation_loop == "reordered_diffusion"
    assert config.model_config.architecture == "WeDLMForCausalLM"


@pytest.mark.parametrize(
    ("file", "entries"),
    [
        ("config", {"expand_token_id": 509}),
        ("generation_config", {"expand_token_id": 509}),
        ("tokenizer_config", {"added_tokens_decoder": {"509": {"content": "<|expand|>"}}}),
    ],
)
def test_dream_on_is_told_by_the_id_that_expands(tmp_path: Path, file: str, entries: dict[str, Any]) -> None:
    folder = changed(tmp_path / "one", "dream", **{file: entries})
    found = described(describe=folder)
    assert found["family"][0] == "DreamOn"
    assert found["expand_token_id"][0] == 509
    assert found["delete_token_id"][0] == 490


def test_what_the_code_of_wedlm_and_dream_on_keeps_for_generation(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"entropy_threshold": 0.6, "pos_penalty_factor": 0.1, "window_size": 8}
    found = described(describe=changed(tmp_path / "one", "wedlm", generation_config=keys))
    assert found["entropy_threshold"] == (0.6, "generation_config.json")
    assert found["position_penalty"] == (0.1, "generation_config.json")
    assert found["block_length"] == (8, "generation_config.json")
    keys = {"alg": "topk_margin", "expand_budget": 4}
    found = described(describe=changed(tmp_path / "two", "dreamon", generation_config=keys))
    assert found["algorithm"] == ("widest_margin", "generation_config.json")
    assert found["not_read"] == (["expand_budget"], "generation_config.json")


@pytest.mark.parametrize("name", ["x.gguf", "./folder/X.GGUF", "org/repo:Q4_K_M", "org/repo:IQ2_XXS"])
def test_a_gguf_file_is_refused_with_what_is_served(name: str) -> None:
    from vllm.engine.arg_utils import EngineArgs

    with pytest.raises(ValueError, match=r"is a GGUF file.*safetensors"):
        EngineArgs(model=name).create_model_config()
    with pytest.raises(ValueError, match="is a GGUF file"):
        described(describe=name)


def test_other_names_are_no_gguf_files() -> None:
    for name in ("org/repo", "./folder", "org/repo-GGUF"):
        check_model_path(name)


def test_generation_config_has_defaults(tmp_path: Path) -> None:
    keys = {"steps": 64, "gen_length": 128, "block_length": 16, "threshold": 0.8, "cfg_scale": 0.5}
    folder = changed(tmp_path / "one", "llada", generation_config=keys | {"remasking": "random"})
    found = described(describe=folder)
    assert found["block_length"] == (16, "generation_config.json")
    assert found["steps"] == (8, "generation_config.json")
    assert found["algorithm"] == ("random", "generation_config.json")
    assert found["not_read"] == (["cfg_scale", "gen_length"], "generation_config.json")
    assert described(describe=folder, steps=3)["steps"] == (3, "command line")


@pytest.mark.parametrize(
    ("family", "keys", "settings", "left"),
    [
        ("Dream", {"steps": 128, "alg": "maskgit_plus"}, {"steps": 128, "algorithm": "maskgit_plus"}, []),
        ("Dream", {"alg": "no_such", "alg_temp": 0.1}, {}, ["alg", "alg_temp"]),
        ("LLaDA", {"steps": 128}, {}, ["steps"]),
        ("LLaDA", {"steps": 101, "gen_length": 128}, {}, ["gen_length", "steps"]),
        ("SDAR", {"denoising_steps": 2, "mask_id": 7}, {"steps": 2, "mask_token_id": 7}, []),
        (
            "LLaDA2",
            {"editing_threshold": 0.5, "max_post_steps": 3},
            {"edit_threshold": 0.5, "max_post_steps": 3},
            [],
        ),
        ("SDAR", {"temperature": 0.6, "eos_token_id": 2}, {}, []),
    ],
)
def test_keys_of_published_code_are_settings_or_named(
    family: str, keys: dict[str, Any], settings: dict[str, Any], left: list[str]
) -> None:
    assert generation_settings(keys, BY_NAME[family], built_in_policies()) == (settings, left)
