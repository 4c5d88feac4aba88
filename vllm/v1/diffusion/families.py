# SPDX-License-Identifier: Apache-2.0
"""The model families served, and what their published code takes as defaults.

One place for facts that published configurations leave out. This module is
imported by the model and config registries: it imports nothing heavy.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

IN_TOKENIZER = -1
"""Stands for a mask id that no table can have: the tokenizer's mask token."""


@dataclass(frozen=True)
class Family:
    """A family of checkpoints with one layout and one published decoder.

    Attributes:
        name: What users call it.
        architectures: Spellings found in ``config.json``.
        model_type: ``model_type`` found in ``config.json``.
        config_class: Class in ``vllm.transformers_utils.configs``; None where ``model_type`` is one
            that transformers knows.
        config_module: Dotted path of the module that holds it.
        model: Module below ``vllm.model_executor.models``, and class.
        loop: Name of the generation loop that runs it.
        mask_token_id: Mask id where the configuration has none, ``IN_TOKENIZER`` where only the
            tokenizer has it; None: an open position holds a random token, not a mask.
        block_length: Tokens per block, where the configuration has none; None: a
            response is one block.
        algorithm: Default unmasking policy.
        threshold: Default confidence threshold.
        entropy_bound: Default bound on the summed entropy, in nats.
        edit_threshold: Default probability above which an unmasked token is rewritten; None: the policy's.
        stops_at_eos: Whether the published decoder ends a response at its end token; else
            the whole canvas is returned.
        end_of_turn: A further end token: its text, and its id where there is no tokenizer.
        shifted: Whether row i of the logits predicts token i + 1.
        keeps_filters: Whether top-k and top-p act at temperature 0 too.
        tempered_confidence: Whether confidence is the probability in the
            distribution that is sampled, not in the plain softmax.
        block_causal_loop: The loop of its block-causal checkpoints, where the files do not tell them
            from the others; ``loop`` is that of the bidirectional ones.
        answer_length: Tokens of an answer whose request names no length, where the canvas is as long as
            the answer.
        executes: What the decoding does of ``checkpoint/special_tokens.py``'s actions.
    """

    name: str
    architectures: tuple[str, ...]
    model_type: str
    config_class: str | None
    config_module: str | None
    model: tuple[str, str]
    loop: str
    mask_token_id: int | None
    block_length: int | None
    algorithm: str
    threshold: float
    entropy_bound: float = 0.35
    edit_threshold: float | None = None
    stops_at_eos: bool = True
    end_of_turn: tuple[str, int] | None = None
    shifted: bool = False
    keeps_filters: bool = False
    tempered_confidence: bool = True
    executes: frozenset[str] = frozenset()
    block_causal_loop: str | None = None
    answer_length: int = 256


# Defaults of the published generate.py of SDAR (JetAstra/SDAR).
_SDAR = Family(
    name="SDAR",
    architectures=("SDARForCausalLM",),
    model_type="sdar",
    config_class="SDARConfig",
    config_module="vllm.transformers_utils.configs.sdar",
    model=("sdar", "SDARForCausalLM"),
    loop="block_diffusion",
    mask_token_id=151669,
    block_length=4,
    algorithm="low_confidence_dynamic",
    threshold=0.85,
)

# Defaults of the published model's generate() (inclusionAI/LLaDA2.0-mini).
_LLADA2 = Family(
    name="LLaDA2",
    architectures=("LLaDA2MoeModelLM",),
    model_type="llada2_moe",
    config_class="LLaDA2MoeConfig",
    config_module="vllm.transformers_utils.configs.llada2_moe",
    model=("llada2_moe", "LLaDA2MoeModelLM"),
    loop="block_diffusion",
    mask_token_id=156895,
    block_length=32,
    algorithm="low_confidence_dynamic",
    threshold=0.95,
)

# Settings of the published examples (DreamLM/Dream); threshold of Fast-dLLM's.
_DREAM = Family(
    name="Dream",
    architectures=("DreamModel",),
    model_type="Dream",
    config_class="DreamConfig",
    config_module="vllm.transformers_utils.configs.dream",
    model=("dream", "DreamModel"),
    loop="full_diffusion",
    mask_token_id=151666,
    block_length=None,
    algorithm="entropy",
    threshold=0.9,
    stops_at_eos=False,
    shifted=True,
    keeps_filters=True,
    answer_length=512,
)

FAMILIES = (
    _SDAR,
    replace(
        _SDAR,
        name="SDAR-MoE",
        architectures=("SDARMoeForCausalLM",),
        model_type="sdar_moe",
        config_class="SDARMoeConfig",
        config_module="vllm.transformers_utils.configs.sdar_moe",
        model=("sdar_moe", "SDARMoeForCausalLM"),
    ),
    _LLADA2,
    # Ships as LLaDA2MoeModelLM: LLaDA2MoeConfig tells the two apart. Defaults of SGLang's decoder.
    replace(
        _LLADA2,
        name="LLaDA2.2",
        architectures=("LLaDA22MoeModelLM",),
        algorithm="insert_delete",
        threshold=0.5,
        edit_threshold=0.0,
        executes=frozenset({"delete", "split"}),
    ),
    # Settings of the card's chat example (nvidia/Nemotron-Labs-Diffusion-8B).
    Family(
        name="Nemotron-Labs-Diffusion",
        architectures=("NemotronLabsDiffusionModel", "NemotronLabsDiffusionForCausalLM"),
        model_type="nemotron_labs_diffusion",
        config_class="NemotronLabsDiffusionConfig",
        config_module="vllm.transformers_utils.configs.nemotron_labs_diffusion",
        model=("nemotron_labs_diffusion", "NemotronLabsDiffusionModel"),
        loop="seeded_block_diffusion",
        mask_token_id=100,
        block_length=32,
        algorithm="threshold",
        threshold=0.9,
        tempered_confidence=False,
    ),
    # Settings of the published chat script (NVlabs/Fast-dLLM, v2).
    Family(
        name="Fast-dLLM v2",
        architectures=("Fast_dLLM_QwenForCausalLM",),
        model_type="Fast_dLLM_Qwen",
        config_class="FastDLLMQwenConfig",
        config_module="vllm.transformers_utils.configs.fast_dllm_v2",
        model=("fast_dllm_v2", "FastDLLMQwenForCausalLM"),
        loop="shifted_block_diffusion",
        mask_token_id=151665,
        block_length=32,
        algorithm="sub_blocks",
        threshold=0.9,
        shifted=True,
    ),
    # Defaults of the published generate.py (ML-GSAI/LLaDA), block as in its examples.
    Family(
        name="LLaDA",
        architectures=("LLaDAModelLM",),
        model_type="llada",
        config_class="LLaDAConfig",
        config_module="vllm.transformers_utils.configs.llada",
        model=("llada", "LLaDAModelLM"),
        loop="full_diffusion",
        mask_token_id=126336,
        block_length=32,
        algorithm="low_confidence_static",
        threshold=0.9,
        stops_at_eos=False,
        end_of_turn=("<|eot_id|>", 126348),
        tempered_confidence=False,
    ),
    # Ships as model_type "llada": LLaDAConfig tells the two apart.
    Family(
        name="LLaDA-MoE",
        architectures=("LLaDAMoEModelLM", "LLaDAMoeModelLM"),
        model_type="lladamoe",
        config_class="LLaDAMoEConfig",
        config_module="vllm.transformers_utils.configs.llada_moe",
        model=("llada_moe", "LLaDAMoEModelLM"),
        loop="full_diffusion",
        mask_token_id=156895,
        block_length=32,
        algorithm="low_confidence_static",
        threshold=0.9,
        stops_at_eos=False,
        tempered_confidence=False,
    ),
    _DREAM,
    # DreamOn's generation_utils. Ships as DreamModel: the id that expands shows it (checkpoint/recognise.py).
    replace(
        _DREAM,
        name="DreamOn",
        architectures=("DreamOnModel",),
        loop="elastic_diffusion",
        algorithm="least_entropy",
        executes=frozenset({"delete", "expand"}),
        answer_length=256,
    ),
    # Defaults of transformers' generate() (models/diffusion_gemma). Images need torchvision.
    Family(
        name="DiffusionGemma",
        architectures=("DiffusionGemmaForBlockDiffusion",),
        model_type="diffusion_gemma",
        config_class="DiffusionGemmaLoopConfig",
        config_module="vllm.transformers_utils.configs.diffusion_gemma",
        model=("diffusion_gemma_text", "DiffusionGemmaForBlockDiffusion"),
        loop="renoising_diffusion",
        mask_token_id=None,
        block_length=256,
        algorithm="renoise",
        threshold=0.005,
        entropy_bound=0.1,
    ),
    # generate_block of its modeling_stable_diffcoder.py, called as its README does. Ships as "llama".
    Family(
        name="Stable-DiffCoder",
        architectures=("StableDiffcoderForCausalLM",),
        model_type="llama",
        config_class=None,
        config_module=None,
        model=("stable_diffcoder", "StableDiffcoderForCausalLM"),
        loop="exact_block_diffusion",
        mask_token_id=5,
        block_length=4,
        algorithm="low_confidence_spread",
        threshold=0.95,
        tempered_confidence=False,
    ),
    # Defaults of its decoder and sampler (Tencent/WeDLM). The architectures stand for two backbones:
    # WeDLMConfig tells them apart.
    *(
        Family(
            name=name,
            architectures=(architecture,),
            model_type="wedlm",
            config_class="WeDLMConfig",
            config_module="vllm.transformers_utils.configs.wedlm",
            model=("wedlm", architecture),
            loop="reordered_diffusion",
            mask_token_id=151665,
            block_length=16,
            algorithm="entropy_distance",
            threshold=0.9,
        )
        for name, architecture in (("WeDLM", "WeDLMForCausalLM"), ("WeDLM-Qwen2", "WeDLMQwen2ForCausalLM"))
    ),
    # Open-dLLM's generation_utils (pengzhangzhi/Open-dLLM). Published as Qwen2ForCausalLM: its own name
    # here is given by checkpoint/recognise.py, or by --hf-overrides.
    Family(
        name="Open-dLLM",
        architectures=("OpenDLLMForCausalLM",),
        model_type="qwen2",
        config_class=None,
        config_module=None,
        model=("open_dllm", "OpenDLLMForCausalLM"),
        loop="full_diffusion",
        mask_token_id=IN_TOKENIZER,
        block_length=None,
        algorithm="entropy",
        threshold=0.9,
        stops_at_eos=False,
        shifted=True,
        keeps_filters=True,
    ),
    # The MDLM sampler of ZHZisZZ/dllm; blocks as in its defaults.
    *(
        Family(
            name=f"A2D-{backbone}",
            architectures=(f"A2D{backbone}LMHeadModel",),
            model_type=f"a2d-{backbone.lower()}",
            config_class=f"A2D{backbone}Config",
            config_module="vllm.transformers_utils.configs.a2d",
            model=("a2d", f"A2D{backbone}LMHeadModel"),
            loop="full_diffusion",
            mask_token_id=IN_TOKENIZER,
            block_length=32,
            algorithm="low_confidence_linear",
            threshold=0.9,
            stops_at_eos=False,
            tempered_confidence=False,
            block_causal_loop="prompt_block_diffusion",
        )
        for backbone in ("Qwen3", "Qwen2", "Llama")
    ),
)

BIDIRECTIONAL = tuple(f.name for f in FAMILIES if f.loop == "full_diffusion")
"""Names of the families in which every position sees the whole canvas."""

ELASTIC = tuple(f.name for f in FAMILIES if f.loop == "elastic_diffusion")
"""Names of the families whose answers grow and shrink."""

ELASTIC_ROWS = tuple(f.name for f in FAMILIES if f.loop == "block_diffusion")
"""Names of the families whose steps may compute a part of their block."""

WITHOUT_TIMETABLE = {
    "entropy": "least_entropy",
    "maskgit_plus": "low_confidence_static",
    "topk_margin": "widest_margin",
}
"""Dream's names of algorithms, and what they are where an answer's length is open (DreamOn)."""

SEEDED = tuple(f.name for f in FAMILIES if f.loop == "seeded_block_diffusion")
"""Names of the families whose checkpoints write causally too."""

_SCORED_LOOPS = (
    *("block_diffusion", "full_diffusion", "exact_block_diffusion"),
    *("prompt_block_diffusion", "shifted_prompt_block_diffusion"),
)


def is_scored(family: Family) -> bool:
    """Whether the tokens of a text have log probabilities: masks alone, one per token, are predicted."""
    return family.loop in _SCORED_LOOPS and family.algorithm != "insert_delete"


SCORED = tuple(f.name for f in FAMILIES if is_scored(f))
"""Names of the families whose prompts have log probabilities."""

END_OF_TURN = tuple(f.name for f in FAMILIES if f.end_of_turn)
"""Names of the families that tell the end of a turn from the end of the text."""

MASKED_DIFFUSION_MODELS = {
    architecture: family.model for family in FAMILIES for architecture in family.architectures
}
"""Architecture -> (module, class), as upstream's model registry wants it."""

MASKED_DIFFUSION_CONFIGS = {f.model_type: f.config_class for f in FAMILIES if f.config_class}
"""``model_type`` -> config class, as upstream's config registry wants it."""

MASKED_DIFFUSION_CONFIG_MODULES = {f.config_class: f.config_module for f in FAMILIES if f.config_class}
"""Config class -> module, as upstream's config package wants it."""


def family_of_architectures(architectures: Iterable[str] | None) -> Family | None:
    """The family that one of these architectures belongs to, if any."""
    wanted = set(architectures or ())
    for family in (*_registered, *FAMILIES):
        if wanted.intersection(family.architectures):
            return family
    return None


def computes_whole_canvas(architectures: Iterable[str] | None) -> bool:
    """Whether a step computes a request's prompt and its canvas at once.

    There is then neither a prefix to cache nor a prompt to cut.
    """
    family = family_of_architectures(architectures)
    return family is not None and family.loop in ("full_diffusion", "elastic_diffusion")


_registered: list[Family] = []


def register_family(family: Family) -> None:
    """Serves a plug-in's architecture with a diffusion loop.

    To be called in every process, which an entry point of ``vllm.general_plugins`` is.
    ``dataclasses.replace`` makes a family of a known one. The model class is registered with
    ``ModelRegistry.register_model``.

    Raises:
        ValueError: One of its architectures is another family's.
    """
    if family in _registered:
        return
    for other in (*FAMILIES, *_registered):
        if taken := sorted({*family.architectures} & {*other.architectures}):
            raise ValueError(
                f"register_family: architectures={family.architectures!r} of {family.name!r} must not hold "
                f"{', '.join(taken)}, served as {other.name}. Give the checkpoint's config.json an "
                "architecture of its own."
            )
    _registered.append(family)


_GGUF_QUANTISATION = re.compile(r"^[\w.-]+/[\w.-]+:(?:[A-Z]{0,2}I?Q\d\w*|F16|F32|BF16)$")
"""``repository:Q4_K_M``, as tools for GGUF name a file of a repository."""


def check_model_path(model: str | os.PathLike[str]) -> None:
    """Refuses a GGUF file, which this release of vLLM does not read.

    Args:
        model: What the user names: a folder, a file or a repository.

    Raises:
        ValueError: Says what is served.
    """
    name = os.fspath(model)
    if name.lower().endswith(".gguf") or _GGUF_QUANTISATION.match(name):
        raise ValueError(
            f"model={name!r} is a GGUF file, which this release of vLLM does not read, of diffusion models "
            "or others. Served are folders and repositories with config.json and safetensors (or PyTorch) "
            "weights, as published or quantised with compressed-tensors, GPTQ, AWQ or FP8. Name the "
            "checkpoint that the file was made from."
        )
