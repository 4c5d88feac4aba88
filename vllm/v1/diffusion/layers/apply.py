# SPDX-License-Identifier: Apache-2.0
"""Gives a loaded model's layers the kernels that compute them, and says how many took which.

It is called once, after loading. A layer gets a class that has one of our mixins before its own class:
what the mixin does not do, and the layer's parts and weights, stay what they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vllm import envs
from vllm.config import VllmConfig, get_layers_from_vllm_config
from vllm.config.compilation import CompilationMode
from vllm.logger import init_logger
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.platforms import current_platform
from vllm.v1.diffusion.layers.classes import become, remade, retype
from vllm.v1.diffusion.layers.forms import AttentionForm, attention_form, gated_form
from vllm.v1.diffusion.layers.fused_attention import FusedAttention, eight_bits, fits, stores
from vllm.v1.diffusion.layers.local_experts import use_local_experts
from vllm.v1.diffusion.layers.prefill_attention import (
    BlockCausalAttentionImpl,
    PrefillAttention,
    computes,
)
from vllm.v1.diffusion.layers.skinny_fp8 import (
    EightBitHead,
    product_of,
    suits_eight_bits,
    use_skinny_fp8,
)
from vllm.v1.diffusion.layers.skinny_layers import (
    SkinnyMethod,
    SkinnyNetwork,
    SkinnyNorm,
    gates,
    norms,
    suits,
    widths,
)

logger = init_logger(__name__)


@dataclass(frozen=True)
class KernelUse:
    """How many layers took a kernel.

    Attributes:
        kernel: Its name.
        layers: That took it.
        of: All that there are.
        what: What they are.
    """

    kernel: str
    layers: int
    of: int
    what: str

    def __str__(self) -> str:
        """As the log says it."""
        return f"{self.kernel}: {self.layers} of {self.of} {self.what}"


def apply_kernels(
    vllm_config: VllmConfig,
    model: nn.Module,
    device: torch.device,
    block_causal: bool,
    eight_bit_head: bool = False,
) -> PrefillAttention | None:
    """Lets every layer that a kernel computes use it; the others stay as they are.

    Args:
        vllm_config: The engine's.
        model: A model whose weights are loaded.
        device: Where it runs.
        block_causal: Whether the model's attention is block-causal.
        eight_bit_head: Whether the LM head is wanted in float8_e4m3fn.

    Returns:
        Which steps of a block-causal model go to our attention kernel; None for other models.

    Raises:
        ValueError: The head is wanted in 8 bits, and cannot have them.
    """
    on_cuda = current_platform.is_cuda()
    compiled = vllm_config.compilation_config.mode not in (None, CompilationMode.NONE)
    said: list[object] = []
    if compiled:
        # Upstream fuses by itself what it compiles.
        said.append("qk_norm_rope_cache: none, the model is compiled")
    elif on_cuda:
        said += fuse_attention(model)
    why = _no_skinny_layers(vllm_config, device)
    if eight_bit_head:
        if why is not None:
            raise ValueError(f"diffusion_config: head_quantization='fp8' has no kernel: {why}.")
        said.append(use_eight_bit_head(model))
    if why is None:
        said += use_skinny_layers(model)
    else:
        said.append(f"skinny_linear: none, {why}")
    if device.type == "cpu" and vllm_config.parallel_config.enable_expert_parallel:
        use_local_experts(model)
    prefill = None
    if block_causal:
        prefill, taken = use_block_causal_attention(vllm_config, device)
        said.append(taken)
    if on_cuda:
        logger.info("Kernels: %s.", "; ".join(map(str, said)))
    return prefill


def _no_skinny_layers(vllm_config: VllmConfig, device: torch.device) -> str | None:
    """Why products of few rows stay with upstream; None if they need not."""
    if device.type != "cuda" or torch.version.hip is not None:
        return "no CUDA GPU"
    if torch.cuda.get_device_capability(device) != (9, 0):
        return "the GPU is not of compute capability 9.0"
    if vllm_config.lora_config is not None:
        return "adapters add to the products"
    if vllm_config.compilation_config.mode not in (None, CompilationMode.NONE):
        return "the model is compiled"
    if envs.VLLM_BATCH_INVARIANT:
        return "results are to be equal for every batch"
    return None


def fuse_attention(model: nn.Module) -> list[KernelUse]:
    """Lets attention layers norm, rotate and store in one kernel.

    Args:
        model: A model whose weights are loaded.
    """
    fused = storing = 0
    for layer, form in _attention(model):
        if fits(form):
            kept = stores(form)
            become(layer, FusedAttention, form=form, stores=kept, eight=kept and eight_bits(form))
            fused += 1
            storing += kept
    all_layers = sum(isinstance(module, Attention) for module in model.modules())
    what = "attention layers" if storing == fused else f"attention layers, {storing} of them with the cache"
    return [KernelUse("qk_norm_rope_cache", fused, all_layers, what)]


def use_block_causal_attention(
    vllm_config: VllmConfig, device: torch.device
) -> tuple[PrefillAttention, KernelUse]:
    """Lets the layers' attention take steps with short blocks to the kernel: all layers, or none.

    Args:
        vllm_config: The engine's, its layers built.
        device: Where the model runs.
    """
    layers = get_layers_from_vllm_config(vllm_config, Attention).values()
    impls: list[Any] = [layer.impl for layer in layers]
    suiting = impls if all(computes(impl, vllm_config.model_config.dtype) for impl in impls) else []
    for impl in suiting:
        retype(impl, BlockCausalAttentionImpl)
    taken = KernelUse("block_causal_attention", len(suiting), len(impls), "attention layers")
    return PrefillAttention(suiting, device), taken


def use_skinny_layers(model: nn.Module) -> list[KernelUse]:
    """Changes the layers of a model that suit.

    Args:
        model: A model whose weights are loaded, on a GPU that has the kernels.
    """
    modules: list[Any] = list(model.modules())
    heads = {id(head) for head in _heads(model)}
    linear = [module for module in modules if isinstance(module, LinearBase) or id(module) in heads]
    suited = [layer for layer in linear if suits(layer)]
    for layer in suited:
        if product_of(layer) is None:
            layer.quant_method = _skinny(layer.quant_method, layer.weight)  # type: ignore[arg-type]
        else:
            use_skinny_fp8(layer)
    of_heads = {id(norm) for _, form in _attention(model) for norm in (form.q_norm, form.k_norm)}
    between = [m for m in modules if isinstance(m, RMSNorm) and id(m) not in of_heads]
    networks = [(module, form) for module in modules if (form := gated_form(module)) is not None]
    gated = [(network, form) for network, form in networks if gates(form)]
    for network, form in gated:
        become(network, SkinnyNetwork, form=form)
    # Without products that start early a norm gains nothing.
    normed = [norm for norm in between if suited and norms(norm)]
    in_eight_bits = widths(suited)
    for norm in normed:
        become(norm, SkinnyNorm, quantises=norm.weight.shape[0] in in_eight_bits)
    return [
        KernelUse("skinny_linear", len(suited), len(linear), "layers"),
        KernelUse("with its activation", len(gated), len(networks), "networks"),
        KernelUse("add_rms_norm", len(normed), len(between), "norms"),
    ]


def use_eight_bit_head(model: nn.Module) -> KernelUse:
    """Lets a model's head read its weights in 8 bits; they stay in 16, too.

    Args:
        model: A model whose weights are loaded, on a GPU that has the kernels.

    Raises:
        ValueError: The head is none that the kernels compute.
    """
    heads = _heads(model)
    taken = [head for head in heads if suits_eight_bits(head)]
    if len(taken) != len(heads):
        raise ValueError(
            "diffusion_config: head_quantization='fp8' is for a head of bfloat16 or float16 with a multiple "
            f"of 16 tokens and of 128 columns; this model's is {type(heads[0].quant_method).__name__}, "
            f"{list(heads[0].weight.shape)}, {heads[0].weight.dtype}."
        )
    for head in taken:
        method: Any = remade(head.quant_method, EightBitHead)
        method.start(head)
        head.quant_method = method
    # A stage of a pipeline may have none.
    return KernelUse("skinny_linear_fp8", len(taken), len(heads), "heads")


def _heads(model: nn.Module) -> list[Any]:
    """What gives logits: an embedding that no head stands beside is the head too."""
    modules = list(model.modules())
    heads = [module for module in modules if isinstance(module, ParallelLMHead)]
    return heads or [module for module in modules if isinstance(module, VocabParallelEmbedding)]


def _skinny(method: Any, weight: torch.Tensor) -> Any:
    """A method that has all that another one has, and takes few rows to the kernel."""
    skinny = remade(method, SkinnyMethod)
    skinny.start(weight)
    return skinny


def _attention(model: nn.Module) -> Iterator[tuple[nn.Module, AttentionForm]]:
    """The model's attention layers of the common form, and their parts."""
    for module in model.modules():
        if isinstance(module, FusedAttention):
            yield module, module.form
        elif (form := attention_form(module)) is not None:
            yield module, form
