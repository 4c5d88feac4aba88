# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM-Diffusion project
"""The diffusion kernels in plain PyTorch: what the compiled operators are compared with.

Written to be read, in float64, with ``[N, V]`` intermediates. Signatures, shapes and meaning are
those of the modules beside this one; this module does not need the compiled library.
"""

import torch
from torch import Tensor

from vllm.v1.diffusion.kernels.rules import Rule

GROUP_IDS = 2048
"""Neighbouring ids in a group of :func:`gumbel_draw`."""

_MASK32 = 0xFFFFFFFF

_E4M3_LARGEST = 448.0


def philox_words(seed: Tensor, offset: Tensor, count: int, stream: int = 0) -> Tensor:
    """Random words of ids or groups: Philox4x32-10 (Salmon et al., SC'11).

    Args:
        seed: ``[N]`` int64, the key.
        offset: ``[N]`` int64, the low half of the counter.
        count: how many.
        stream: the counter's last word: 0 for ids, 1 for groups.

    Returns:
        ``[N, count]`` int64, values in ``0 ... 2**32 - 1``: word ``v % 4`` of block ``v // 4``.
    """
    blocks = torch.arange((count + 3) // 4, device=seed.device)[None]
    key = [seed[:, None] & _MASK32, (seed[:, None] >> 32) & _MASK32]
    c0 = (offset[:, None] & _MASK32) + torch.zeros_like(blocks)
    c1 = ((offset[:, None] >> 32) & _MASK32) + torch.zeros_like(blocks)
    c2 = blocks.expand_as(c0)
    c3 = torch.full_like(c0, stream)
    for _ in range(10):
        # Products of two 32-bit numbers wrap into int64 with their 64 bits intact.
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0 = ((b >> 32) & _MASK32) ^ c1 ^ key[0]
        c1 = b & _MASK32
        c2 = ((a >> 32) & _MASK32) ^ c3 ^ key[1]
        c3 = a & _MASK32
        key = [(key[0] + 0x9E3779B9) & _MASK32, (key[1] + 0xBB67AE85) & _MASK32]
    return torch.stack([c0, c1, c2, c3], dim=-1).flatten(1)[:, :count]


def noise(seed: Tensor, position: Tensor, step: Tensor, step_bits: int, gumbel: bool) -> Tensor:
    """Reference of :func:`vllm.v1.diffusion.kernels.noise.noise`, after broadcasting."""
    offset = (position << step_bits) + step
    words = philox_words(seed.flatten(), offset.flatten(), 1, stream=1).view(position.shape)
    u = (words.double() + 0.5) * 2.0**-32
    return -torch.log(-torch.log(u)) if gumbel else u


def timetable(step: Tensor, steps: Tensor, eps: Tensor) -> Tensor:
    """Reference of :func:`vllm.v1.diffusion.kernels.timetable.timetable`: the published code's words."""
    shares = []
    for made, asked, end in zip(step.tolist(), steps.tolist(), eps.cpu(), strict=True):
        times = torch.linspace(1, end.item(), asked + 1)
        shares.append(1 - times[made + 1] / times[made])
    return torch.stack(shares).to(eps.device)


def gumbel_noise(seed: Tensor, offset: Tensor, count: int, stream: int = 0) -> Tensor:
    """Gumbel noise, ``[N, count]`` float64, from :func:`philox_words`."""
    u = (philox_words(seed, offset, count, stream).double() + 0.5) * 2.0**-32
    return -torch.log(-torch.log1p(-u))


def gumbel_draw(scaled: Tensor, seed: Tensor, offset: Tensor) -> Tensor:
    """Draws an id of each row of ``softmax(scaled)``, ``[N]`` int64.

    A group of ``GROUP_IDS`` neighbours is drawn by the log-sum-exp of its ids, then an id of it; both
    by Gumbel noise. The probability of an id is that of its group times its own within it.
    """
    rows, vocab = scaled.shape
    groups = -(-vocab // GROUP_IDS)
    padding = groups * GROUP_IDS - vocab
    padded = torch.nn.functional.pad(scaled.double(), (0, padding), value=-torch.inf)
    by_group = padded.view(rows, groups, GROUP_IDS).logsumexp(-1)
    group = (by_group + gumbel_noise(seed, offset, groups, stream=1)).argmax(-1)
    mine = torch.arange(vocab, device=scaled.device) // GROUP_IDS == group[:, None]
    scores = scaled.double() + gumbel_noise(seed, offset, vocab)
    return scores.masked_fill(~mine, -torch.inf).argmax(-1)


def row_stats(
    logits: Tensor,
    temperature: Tensor,
    stat_temperature: Tensor,
    seed: Tensor,
    offset: Tensor,
    active: Tensor | None = None,
    banned: int = -1,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Reference of :func:`vllm.v1.diffusion.kernels.row_stats.row_stats`, computed in ``dtype``.

    Returns:
        ``sample`` (int64), ``sample_prob``, ``top1``, ``top2``, ``entropy``, ``lse`` (``dtype``),
        each ``[N]``.
    """
    vocab = logits.shape[1]
    wide = logits.to(dtype)
    scale = stat_temperature.to(dtype)
    scale = torch.where((scale > 0) & scale.isfinite(), scale, torch.nan)
    scaled = wide / scale[:, None]
    lse = scaled.logsumexp(-1)
    log_prob = (scaled - lse[:, None]).masked_fill(wide == -torch.inf, -torch.inf)
    prob = log_prob.exp()
    entropy = -torch.where(prob > 0, prob * log_prob, 0.0).sum(-1)

    choosable = wide.clone()
    if banned >= 0:
        choosable[:, banned] = -torch.inf
    argmax = choosable.argmax(-1)
    best_two = choosable.topk(min(2, vocab), dim=-1).indices
    tops = prob.gather(1, best_two).masked_fill(choosable.gather(1, best_two) == -torch.inf, 0.0)
    top1 = tops[:, 0]
    top2 = tops[:, 1] if vocab > 1 else torch.zeros_like(top1)

    drawn = temperature > 0
    safe = torch.where(drawn, temperature, 1.0).double()
    sample = torch.where(drawn, gumbel_draw(choosable.double() / safe[:, None], seed, offset), argmax)

    broken = lse.isnan() | (wide == torch.inf).any(-1)
    lse = lse.masked_fill(broken, torch.nan)
    no_choice = broken | (choosable == -torch.inf).all(-1)
    fallback = 1 if banned == 0 else 0
    sample = sample.masked_fill(no_choice, fallback)
    unusable = broken | (lse == -torch.inf)
    sample_prob = prob.gather(1, sample[:, None])[:, 0].masked_fill(no_choice, 0.0)
    top1, top2 = top1.masked_fill(no_choice, 0.0), top2.masked_fill(no_choice, 0.0)
    entropy = entropy.masked_fill(unusable, 0.0).clamp_min(0.0)

    if active is not None:
        sample = sample.masked_fill(~active, -1)
        sample_prob, top1, top2, entropy, lse = (
            x.masked_fill(~active, 0.0) for x in (sample_prob, top1, top2, entropy, lse)
        )
    return sample, sample_prob, top1, top2, entropy, lse


def _count(rule: Rule, ranked: Tensor, quota: int, threshold: Tensor) -> int:
    """How many of the ranked candidates a rule unmasks.

    ``ranked`` is float32: confidences descending, or entropies ascending for ENTROPY_BOUNDED.
    """
    total = len(ranked)
    quota = min(quota, total)
    match rule:
        case Rule.STATIC | Rule.SEQUENTIAL:
            return quota
        case Rule.DYNAMIC:
            return max(quota, int((ranked > threshold).sum()))
        case Rule.THRESHOLD:
            return max(1, int((ranked >= threshold).sum()))
        case Rule.ENTROPY_BOUNDED:
            sums = ranked.double().cumsum(0)
            return max(1, int(torch.searchsorted(sums, threshold.double()[None], right=False)))
        case Rule.FACTOR:
            ranks = torch.arange(2, total + 2, device=ranked.device)
            bars = (1.0 - threshold.double() / ranks).float()
            passing = max(1, int((ranked >= bars).int().cumprod(0).sum()))
            return total if passing >= total - 1 else passing
    raise AssertionError(f"{rule!r} does not count")


def unmask(
    token: Tensor,
    confidence: Tensor,
    entropy: Tensor,
    picked: Tensor | None,
    row_start: Tensor,
    slots: Tensor,
    canvas: Tensor,
    masked: Tensor,
    unmasked_at: Tensor,
    step: Tensor,
    rule: Tensor,
    steps: Tensor,
    block_length: Tensor,
    threshold: Tensor,
) -> Tensor:
    """Reference of :func:`vllm.v1.diffusion.kernels.unmask.unmask`: same arguments, same effects."""
    remaining = torch.zeros(len(slots), dtype=torch.int32, device=token.device)
    for r, slot in enumerate(slots.tolist()):
        first, end = int(row_start[r]), int(row_start[r + 1])
        candidates = masked[slot, : end - first].nonzero()[:, 0]
        if len(candidates) == 0:
            continue
        kind = Rule(int(rule[slot]))
        total, now = max(1, int(steps[slot])), int(step[slot])
        block = int(block_length[slot])
        quota = max(1, block // total + (now < block % total))
        if kind is Rule.GIVEN:
            assert picked is not None
            chosen = candidates[picked[first:end][candidates]]
        elif kind is Rule.SEQUENTIAL:
            chosen = candidates[:quota]
        else:
            if kind is Rule.ENTROPY_BOUNDED:
                values = entropy[first:end][candidates].nan_to_num(torch.inf, torch.inf, -torch.inf)
                order = values.argsort(stable=True)
            else:
                values = confidence[first:end][candidates]
                values = values.nan_to_num(-torch.inf, torch.inf, -torch.inf)
                order = values.argsort(stable=True, descending=True)
            chosen = candidates[order[: _count(kind, values[order], quota, threshold[slot])]]
        canvas[slot, chosen] = token[first:end][chosen]
        masked[slot, chosen] = False
        unmasked_at[slot, chosen] = now
        step[slot] += 1
        remaining[r] = len(candidates) - len(chosen)
    return remaining


def attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    block_length: Tensor,
    scale: float,
) -> Tensor:
    """Reference of :mod:`vllm.v1.diffusion.kernels.block_causal`, ``[T, H, D]`` float64.

    Rows of no request are 0.
    """
    group = query.shape[1] // key_cache.shape[2]
    out = query.new_zeros(query.shape, dtype=torch.float64)
    for r, seq_len in enumerate(seq_lens.tolist()):
        first, end = int(query_start_loc[r]), int(query_start_loc[r + 1])
        if first == end:
            continue
        pages = block_table[r, : -(-seq_len // key_cache.shape[1])].long()
        key, value = (
            cache[pages].flatten(0, 1)[:seq_len].double().repeat_interleave(group, dim=1)
            for cache in (key_cache, value_cache)
        )
        position = torch.arange(seq_len - (end - first), seq_len, device=query.device)
        length = int(block_length[r])
        sees = (position // length + 1) * length
        unseen = torch.arange(seq_len, device=query.device) >= sees[:, None]
        scores = torch.einsum("qhd,khd->hqk", query[first:end].double(), key) * scale
        scores = scores.masked_fill(unseen, -torch.inf)
        out[first:end] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)
    return out


def skinny_linear(input: Tensor, weight: Tensor, bias: Tensor | None, gated: bool = False) -> Tensor:
    """``[M, N]`` float64, before it is rounded; see ``skinny_linear.py``."""
    out = input.double() @ weight.double().T
    if bias is not None:
        out = out + bias.double()
    if not gated:
        return out
    gate, up = out.to(input.dtype).double().chunk(2, dim=-1)
    return torch.nn.functional.silu(gate).to(input.dtype).double() * up


def skinny_linear_fp8(
    input: Tensor,
    input_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    gated: bool = False,
) -> Tensor:
    """``[M, N]`` float64, before it is rounded; see ``skinny_linear.py``."""
    out = input.double() @ weight.double().T
    out = out * input_scale.double().reshape(-1, 1) * weight_scale.double().reshape(1, -1)
    if bias is not None:
        out = out + bias.double()
    if not gated:
        return out
    gate, up = out.to(dtype).double().chunk(2, dim=-1)
    return torch.nn.functional.silu(gate).to(dtype).double() * up


def quantize_rows(input: Tensor, gated: bool = False) -> tuple[Tensor, Tensor]:
    """The rows in float8_e4m3fn and their scales, ``[M, 1]`` float32; see ``skinny_linear.py``."""
    if gated:
        gate, up = input.double().chunk(2, dim=-1)
        input = (torch.nn.functional.silu(gate).to(input.dtype).double() * up).to(input.dtype)
    largest = input.float().abs().amax(dim=-1, keepdim=True)
    scale = (largest / torch.full_like(largest, _E4M3_LARGEST)).clamp_min(1.0 / (_E4M3_LARGEST * 512))
    return to_e4m3(input, scale), scale


def to_e4m3(x: Tensor, scale: Tensor) -> Tensor:
    """``x / scale`` rounded to float8_e4m3fn; what is too large becomes the largest number."""
    return (x.float() / scale).clamp(-_E4M3_LARGEST, _E4M3_LARGEST).to(torch.float8_e4m3fn)


def add_rms_norm(input: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """``(input, residual)`` as they become, ``[M, K]`` float64; see ``skinny_linear.py``."""
    total = input.double() + residual.double()
    normed = total * torch.rsqrt(total.square().mean(-1, keepdim=True) + epsilon)
    return normed.to(input.dtype).double() * weight.double(), total


def qk_norm_rope(
    x: Tensor, weight: Tensor | None, epsilon: float, cos_sin: Tensor, positions: Tensor
) -> Tensor:
    """Queries or keys as they become, ``[T, heads, D]`` float64, of ``x`` likewise.

    ``cos_sin`` may be narrower than a head; see ``qk_norm_rope_cache.py``.
    """
    x = x.double()
    if weight is not None:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * weight.double()
    rotary = cos_sin.shape[1]
    low, high = x[..., :rotary].chunk(2, dim=-1)
    cosine, sine = cos_sin[positions].double().unsqueeze(-2).chunk(2, dim=-1)
    return torch.cat((low * cosine - high * sine, high * cosine + low * sine, x[..., rotary:]), dim=-1)
