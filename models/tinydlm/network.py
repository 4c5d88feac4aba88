"""The transformer of both families in plain PyTorch: grouped attention, RoPE, RMSNorm, SwiGLU.

The SDAR family is Qwen3's backbone (with an RMSNorm on every head's query and key); the LLaDA
family is the Llama-like one (without). What a token may see is the caller's business: attention
takes any mask.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .vocab import VOCAB_SIZE


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of a network.

    Attributes:
        family: ``sdar`` or ``llada``.
        block_size: tokens that are denoised together; for ``llada`` only a default of decoding.
    """

    family: str
    block_size: int = 16
    hidden_size: int = 128
    ffn_size: int = 384
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    vocab_size: int = VOCAB_SIZE
    max_positions: int = 2048
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        """Checks what the two families allow."""
        assert self.family in ("sdar", "llada"), self.family
        assert self.heads % self.kv_heads == 0
        if self.family == "llada":
            assert self.kv_heads == self.heads and self.head_dim * self.heads == self.hidden_size

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalised per head."""
        return self.family == "sdar"


class RMSNorm(nn.Module):
    """Root-mean-square normalisation in float32 over the last axis."""

    def __init__(self, size: int, eps: float) -> None:
        """Starts with a scale of one."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalises ``[..., size]``; the result has ``x``'s dtype."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * self.weight).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Applies RoPE in the half-split layout to ``[n, heads, length, head_dim]``."""
    low, high = x.float().chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1).to(x.dtype)


class Layer(nn.Module):
    """One transformer layer."""

    def __init__(self, config: NetworkConfig) -> None:
        """Makes the layer's weights."""
        super().__init__()
        self.config = config
        hidden, dim = config.hidden_size, config.head_dim
        self.attention_norm = RMSNorm(hidden, config.norm_eps)
        self.q_proj = nn.Linear(hidden, config.heads * dim, bias=False)
        self.k_proj = nn.Linear(hidden, config.kv_heads * dim, bias=False)
        self.v_proj = nn.Linear(hidden, config.kv_heads * dim, bias=False)
        self.o_proj = nn.Linear(config.heads * dim, hidden, bias=False)
        if config.qk_norm:
            self.q_norm = RMSNorm(dim, config.norm_eps)
            self.k_norm = RMSNorm(dim, config.norm_eps)
        self.ffn_norm = RMSNorm(hidden, config.norm_eps)
        self.gate_proj = nn.Linear(hidden, config.ffn_size, bias=False)
        self.up_proj = nn.Linear(hidden, config.ffn_size, bias=False)
        self.down_proj = nn.Linear(config.ffn_size, hidden, bias=False)

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor) -> Tensor:
        """Self-attention of ``[n, length, hidden]``; bias ``[n, 1, length, length]`` is added."""
        n, length, _ = x.shape
        query, key, value = (
            projection(x).view(n, length, -1, self.config.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.config.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        group = self.config.heads // self.config.kv_heads
        key, value = (part.repeat_interleave(group, dim=1) for part in (key, value))
        out = F.scaled_dot_product_attention(query, key, value, bias.to(query.dtype))
        mixed: Tensor = self.o_proj(out.transpose(1, 2).reshape(n, length, -1))
        return mixed

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor) -> Tensor:
        """Maps ``[n, length, hidden]`` to the same shape."""
        x = x + self.attend(self.attention_norm(x), cos, sin, bias)
        inner = self.ffn_norm(x)
        update: Tensor = self.down_proj(F.silu(self.gate_proj(inner)) * self.up_proj(inner))
        return x + update


class Network(nn.Module):
    """Embedding, layers, final norm and an untied head."""

    def __init__(self, config: NetworkConfig) -> None:
        """Draws weights from PyTorch's global generator; residual branches start small."""
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.final_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = config.hidden_size**-0.5 * ((2 * config.layers) ** -0.5 if residual else 1.0)
                nn.init.normal_(weight, std=std)

    def forward(self, tokens: Tensor, positions: Tensor, visible: Tensor, tail: int = 0) -> Tensor:
        """Computes logits.

        Args:
            tokens: ``[n, length]`` int64.
            positions: ``[n, length]`` int64, absolute positions for RoPE.
            visible: ``[n, length, length]`` bool, whether a query (row) sees a key (column).
            tail: how many trailing rows need logits; 0 for all.

        Returns:
            ``[n, tail or length, vocab]``.
        """
        half = self.config.head_dim // 2
        steps = torch.arange(half, device=tokens.device, dtype=torch.float32) / half
        angles = positions[:, None, :, None].float() * self.config.rope_theta**-steps
        cos, sin = angles.cos(), angles.sin()
        bias = torch.zeros_like(visible, dtype=torch.float32).masked_fill(~visible, -torch.inf)[:, None]
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin, bias)
        logits: Tensor = self.head(self.final_norm(x[:, -tail:] if tail else x))
        return logits
