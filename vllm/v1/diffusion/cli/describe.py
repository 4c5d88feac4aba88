# SPDX-License-Identifier: Apache-2.0
"""``vllm diffuse --describe``: what an engine would take for a model, and from where."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.v1.diffusion.cli.engine import UsageError, model_path
from vllm.v1.diffusion.cli.options import diffusion_params

if TYPE_CHECKING:
    from vllm.config import ModelConfig
    from vllm.v1.diffusion.config import Setting
    from vllm.v1.diffusion.policies import UnmaskingPolicy
    from vllm.v1.diffusion.request.params import DiffusionParams

_COMMAND_LINE = "command line"


def describe(args: argparse.Namespace) -> str:
    """Resolves a model's settings without starting an engine.

    Args:
        args: The command's arguments; ``describe`` or ``model`` names the checkpoint.

    Returns:
        A table, or a JSON object where ``--json`` is given: for every setting its value
        and its source. Of the algorithms' parameters it has those that the chosen one reads.

    Raises:
        ValueError: The arguments or the model cannot be used.
        OSError: The model's files cannot be read.
    """
    if args.describe and (args.model or args.bundled):
        raise UsageError("--describe MODEL and --model or --bundled exclude each other.")
    args.model = args.describe or args.model
    from vllm.engine.arg_utils import EngineArgs

    model_config = EngineArgs(
        model=model_path(args), dtype=args.dtype, max_model_len=args.max_model_len
    ).create_model_config()
    found = {name: tuple(setting) for name, setting in _settings(model_config, args).items()}
    if args.json:
        return json.dumps(
            {name: {"value": value, "source": source} for name, (value, source) in found.items()}
        )
    rows = [(name, _shown(name, value), source) for name, (value, source) in found.items()]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{name:{widths[0]}}  {value:{widths[1]}}  {source}" for name, value, source in rows)


def _settings(model_config: ModelConfig, args: argparse.Namespace) -> dict[str, Setting]:
    from vllm.v1.diffusion.checkpoint.checks import check_checkpoint
    from vllm.v1.diffusion.checkpoint.recognise import recognise
    from vllm.v1.diffusion.config import GENERATION, MODEL, TABLE, Setting, published_defaults, settings
    from vllm.v1.diffusion.families import family_of_architectures
    from vllm.v1.diffusion.policies import get_policy
    from vllm.v1.diffusion.policies.registry import built_in_numbers

    recognise(model_config)
    family = family_of_architectures(model_config.architectures)
    if family is None:
        raise UsageError(
            f"{model_config.model} is no masked-diffusion model ({', '.join(model_config.architectures)})."
        )
    check_checkpoint(model_config, family)
    resolved = settings(model_config, None)
    _, unserved = published_defaults(model_config, family)
    given = diffusion_params(args)
    _check(given, {name: setting.value for name, setting in resolved.items()})
    resolved |= {
        name: Setting(value, _COMMAND_LINE) for name, value in given if name != "trace" and value is not None
    }
    policy = get_policy(resolved["algorithm"].value)
    for name in ({"steps", *built_in_numbers()} - policy.parameters) & resolved.keys():
        del resolved[name]
    if "steps" in resolved and resolved["steps"].value is None:
        resolved["steps"] = Setting(*_default_steps(policy, resolved))
    del resolved["canvas_length"]
    text = model_config.hf_text_config
    sizes = {
        "num_hidden_layers": text.num_hidden_layers,
        "hidden_size": model_config.get_hidden_size(),
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": model_config.get_total_num_kv_heads(),
        "head_size": model_config.get_head_size(),
        "vocab_size": model_config.get_vocab_size(),
    }
    return {
        "model": Setting(model_config.model, _COMMAND_LINE if args.model else "bundled"),
        "architecture": Setting(model_config.architecture, MODEL),
        "family": Setting(family.name, TABLE),
        "generation_loop": Setting(family.loop, TABLE),
        **{name: setting for name, setting in resolved.items() if setting.value is not None},
        **({"not_read": Setting(unserved, GENERATION)} if unserved else {}),
        "eos_token_ids": Setting(*_eos_token_ids(model_config)),
        "chat_template": Setting(*_chat_template(model_config)),
        "dtype": Setting(str(model_config.dtype).removeprefix("torch."), _dtype_source(model_config, args)),
        "max_model_len": Setting(model_config.max_model_len, _COMMAND_LINE if args.max_model_len else MODEL),
        **{name: Setting(value, MODEL) for name, value in sizes.items()},
    }


def _check(given: DiffusionParams, resolved: dict[str, Any]) -> None:
    """Refuses parameters that a request would be refused for."""
    from vllm.sampling_params import SamplingParams
    from vllm.v1.diffusion.config import MaskedDiffusionConfig
    from vllm.v1.diffusion.request.resolve import resolve_decoding

    config = MaskedDiffusionConfig(**resolved)
    resolve_decoding(SamplingParams(extra_args=given.to_extra_args()), config)


def _default_steps(policy: UnmaskingPolicy, resolved: dict[str, Setting]) -> tuple[int, str]:
    if policy.default_steps is not None:
        return policy.default_steps, f"algorithm {resolved['algorithm'].value}"
    return resolved["block_length"].value, "block_length: a step for every token"


def _eos_token_ids(model_config: ModelConfig) -> tuple[list[int] | None, str]:
    """The ids at which the engine ends a response, where it does."""
    from vllm.tokenizers import cached_tokenizer_from_config
    from vllm.v1.diffusion.config import MODEL, TOKENIZER

    own = cached_tokenizer_from_config(model_config).eos_token_id
    more = model_config.try_get_generation_config().get("eos_token_id")
    further = more if isinstance(more, list) else [more]
    ids = [*dict.fromkeys(i for i in (own, *further) if i is not None)]
    folder, file = Path(model_config.model), "generation_config.json"
    if folder.is_dir() and not (folder / file).is_file():
        file = MODEL
    sources = [n for n, i in ((TOKENIZER, own), (file, more)) if i is not None]
    return ids or None, ", ".join(sources) or "nowhere"


def _chat_template(model_config: ModelConfig) -> tuple[str | None, str]:
    from vllm.tokenizers import cached_tokenizer_from_config

    template = getattr(cached_tokenizer_from_config(model_config), "chat_template", None)
    if template is None:
        return None, "the checkpoint has none: vllm serve takes --chat-template"
    own_file = (Path(model_config.tokenizer) / "chat_template.jinja").is_file()
    return template, "chat_template.jinja" if own_file else "tokenizer_config.json"


def _dtype_source(model_config: ModelConfig, args: argparse.Namespace) -> str:
    if args.dtype != "auto":
        return _COMMAND_LINE
    named = str(getattr(model_config.hf_text_config, "dtype", None)).removeprefix("torch.")
    return f"--dtype auto; config.json has {named}"


def _shown(name: str, value: Any) -> str:
    if name == "chat_template" and value is not None:
        return f"{len(value)} characters"
    return json.dumps(value) if not isinstance(value, str) else value
