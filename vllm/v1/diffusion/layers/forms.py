# SPDX-License-Identifier: Apache-2.0
"""Tells what a layer computes, whatever its class is called.

A model of any package may have attention layers and feed-forward networks of classes of its own. Which
of their parts are which follows from the parts' types. How ``forward`` connects them is tried out: it
runs once on a copy of the layer whose parts are stand-ins, on a few rows in the host's memory, and what
the stand-ins were given must be what the common form gives them. A layer that does anything else is
not of that form, and stays as it is.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import (
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase

_ROWS = 3


@dataclass(frozen=True)
class AttentionForm:
    """An attention layer's parts: a product, norms of each head or none, rotation, attention, a product.

    Attributes:
        qkv: Queries, keys and values of a row, one behind the other.
        q_norm: Of every head of queries; None for no norms.
        k_norm: Of every head of keys, likewise.
        rotary: The rotation of queries and keys.
        attn: Upstream's attention.
        out: The product of what was attended to.
        arguments: The names of ``forward``'s two arguments, in order.
        hidden: Which of them is the layer's input; the other one is the positions.
    """

    qkv: Any
    q_norm: Any
    k_norm: Any
    rotary: Any
    attn: Any
    out: Any
    arguments: tuple[str, str]
    hidden: str

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """The input and the positions of a call of ``forward``."""
        given = dict(zip(self.arguments, args, strict=False)) | kwargs
        hidden = given.pop(self.hidden)
        (positions,) = given.values()
        return hidden, positions


@dataclass(frozen=True)
class GatedForm:
    """A feed-forward network's parts: a product, SiLU of its one half times the other, a product.

    Attributes:
        gate_up: The first product.
        act: The activation.
        down: The second product.
    """

    gate_up: Any
    act: Any
    down: Any


def attention_form(layer: nn.Module) -> AttentionForm | None:
    """The parts of an attention layer; None if the layer is no such one.

    Args:
        layer: Any module.
    """
    parts = _parts(layer, QKVParallelLinear, RotaryEmbeddingBase, Attention, RowParallelLinear)
    arguments = _arguments(layer)
    if parts is None or len(arguments) != 2:
        return None
    qkv, rotary, attn, out = parts
    hidden = [name for name in arguments if "position" not in name]
    norms = [child for child in layer.children() if isinstance(child, RMSNorm)]
    if len(hidden) != 1 or len(norms) not in (0, 2):
        return None
    for q_norm, k_norm in (norms, norms[::-1]) if norms else ([None, None],):
        form = AttentionForm(qkv, q_norm, k_norm, rotary, attn, out, (arguments[0], arguments[1]), hidden[0])
        if _connects_attention(layer, form):
            return form
    return None


def gated_form(layer: nn.Module) -> GatedForm | None:
    """The parts of a feed-forward network; None if the layer is no such one.

    Args:
        layer: Any module.
    """
    parts = _parts(layer, MergedColumnParallelLinear, SiluAndMul, RowParallelLinear)
    if parts is None or len(_arguments(layer)) != 1:
        return None
    form = GatedForm(*parts)
    return form if _connects_network(layer, form) else None


def plain(part: Any, kind: type, *methods: str) -> bool:
    """Whether a part computes what its upstream class does: a subclass may add, but not override.

    Args:
        part: Of a layer.
        kind: Upstream's class.
        methods: What computes.
    """
    cls = type(part)
    return isinstance(part, kind) and all(getattr(cls, name) is getattr(kind, name) for name in methods)


def _parts(layer: nn.Module, *kinds: type) -> tuple[Any, ...] | None:
    """The one child of each kind, with an adapter or without; None unless there is just one."""
    found = []
    for kind in kinds:
        children = [child for child in layer.children() if isinstance(_base(child), kind)]
        if len(children) != 1:
            return None
        found += children
    return tuple(found)


def _base(child: Any) -> Any:
    """What an adapter's layer wraps."""
    return getattr(child, "base_layer", child)


def _arguments(layer: nn.Module) -> list[str]:
    """The names of ``forward``'s arguments; nothing where some are optional, or collected."""
    parameters = inspect.signature(layer.forward).parameters.values()
    usual = inspect.Parameter.POSITIONAL_OR_KEYWORD
    if any(p.kind is not usual or p.default is not inspect.Parameter.empty for p in parameters):
        return []
    return [p.name for p in parameters]


class _StandIn:
    """In the place of a part: notes its one call, and computes something that can be recognised."""

    def __init__(self, part: Any, compute: Callable[..., Any] | None = None) -> None:
        self._part, self._compute = part, compute

    def __call__(self, *args: Any) -> Any:
        if self._compute is None:
            raise TypeError("the common form has no such part")
        return self._compute(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


def _try_out(layer: nn.Module, stand_ins: dict[Any, _StandIn], **arguments: torch.Tensor) -> Any:
    """What ``forward`` returns on a copy of a layer with stand-ins; None where it fails on them."""
    modules: dict[str, Any] = {
        name: stand_ins.get(child, child if isinstance(child, nn.Identity) else _StandIn(child))
        for name, child in layer.named_children()
    }
    tried = copy.copy(layer)
    tried.__dict__["_modules"] = layer._modules | modules
    try:
        with torch.no_grad(), torch.device("cpu"):
            return tried.forward(**arguments)
    except Exception:
        return None


def _numbers(*shape: int) -> torch.Tensor:
    """Numbers of all sizes, float64, so that a bound on them shows."""
    generator = torch.Generator().manual_seed(len(shape) + shape[-1])
    sizes = torch.randint(-3, 7, shape, generator=generator, device="cpu")
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu") * 10.0**sizes


def _same(got: Any, expected: torch.Tensor) -> bool:
    return (
        isinstance(got, torch.Tensor)
        and got.numel() == expected.numel()
        and len(got) == len(expected)
        # Sums of a head's numbers may be of another order.
        and torch.allclose(got.reshape(expected.shape), expected, rtol=1e-6, atol=1e-6)
    )


def _connects_attention(layer: nn.Module, form: AttentionForm) -> bool:
    """Whether ``forward`` gives the parts what the common form gives them."""
    attn, size = form.attn, form.attn.head_size
    if attn.head_size_v != size:
        return False
    widths = [heads * size for heads in (attn.num_heads, attn.num_kv_heads, attn.num_kv_heads)]
    hidden, product, attended, result = (_numbers(_ROWS, n) for n in (5, sum(widths), widths[0], 7))
    positions = torch.tensor([0, 5, 1 << 20], device="cpu")
    seen: list[bool] = []

    def give(x: torch.Tensor, expected: torch.Tensor, answer: Any) -> Any:
        seen.append(_same(x, expected))
        return answer

    def norm(by: float) -> Callable[[torch.Tensor], torch.Tensor]:
        # Of a row's last dimension, as the norm is: a head.
        return lambda x: (x - x.mean(-1, keepdim=True)) * by

    def turn(places: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(places is positions)
        # What a norm before it and one behind it make something else of.
        by = 1.0 + places.view(-1, *[1] * (q.dim() - 1))
        return q * by + by, k * by - by

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q_, k_, v_ = (x.unflatten(-1, (-1, size)) for x in product.clone().split(widths, dim=-1))  # type: ignore[no-untyped-call]
        if form.q_norm is not None:
            q_, k_ = norm(2.0)(q_), norm(3.0)(k_)
        q_, k_ = turn(positions, q_, k_)
        seen.extend(_same(x, expected) for x, expected in ((q, q_), (k, k_), (v, v_)))
        return attended

    stand_ins = {
        form.qkv: _StandIn(form.qkv, lambda x: give(x, hidden, (product.clone(), None))),
        form.rotary: _StandIn(form.rotary, turn),
        form.attn: _StandIn(form.attn, attend),
        form.out: _StandIn(form.out, lambda x: give(x, attended, (result, None))),
    }
    if form.q_norm is not None:
        stand_ins[form.q_norm] = _StandIn(form.q_norm, norm(2.0))
        stand_ins[form.k_norm] = _StandIn(form.k_norm, norm(3.0))
    places = next(name for name in form.arguments if name != form.hidden)
    returned = _try_out(layer, stand_ins, **{form.hidden: hidden, places: positions})
    # One call of each: the product, the rotation and its repetition above, attention's three, the product.
    return returned is result and all(seen) and len(seen) == 7


def _connects_network(layer: nn.Module, form: GatedForm) -> bool:
    """Whether ``forward`` gives the parts what the common form gives them."""
    hidden, product, gated, result = (_numbers(_ROWS, n) for n in (5, 16, 8, 7))
    seen: list[bool] = []

    def give(x: torch.Tensor, expected: torch.Tensor, answer: Any) -> Any:
        seen.append(_same(x, expected))
        return answer

    stand_ins = {
        form.gate_up: _StandIn(form.gate_up, lambda x: give(x, hidden, (product, None))),
        form.act: _StandIn(form.act, lambda x: give(x, product, gated)),
        form.down: _StandIn(form.down, lambda x: give(x, gated, (result, None))),
    }
    returned = _try_out(layer, stand_ins, **{_arguments(layer)[0]: hidden})
    return returned is result and all(seen) and len(seen) == 3
