"""The denoising examples: what is hidden, and that training sees what decoding will see."""

import pytest
import torch
from tinydlm.network import Network, NetworkConfig
from tinydlm.noise import LENGTH, WINDOW, block_diffusion, full_diffusion
from tinydlm.problems import TASKS
from tinydlm.tasks import Batch, Sampler
from tinydlm.vocab import EOS, MASK

SMALL = {"hidden_size": 64, "ffn_size": 64, "layers": 2, "heads": 2, "kv_heads": 2}


def problems(count: int, length: int = 64) -> tuple[Batch, Sampler]:
    sampler = Sampler(4, torch.device("cpu"))
    return sampler.draw(dict.fromkeys(TASKS, count), length), sampler


@pytest.mark.parametrize("block", [4, 8, 16])
def test_every_answer_block_sees_itself_and_clean_blocks_before_it(block: int) -> None:
    """The doubled row gives the logits of a plain block-causal pass over each noisy block."""
    batch, sampler = problems(6)
    torch.manual_seed(0)
    network = Network(NetworkConfig("sdar", block, **SMALL)).eval()
    example = block_diffusion(batch, sampler, block)
    with torch.no_grad():
        doubled = network(example.tokens, example.positions, example.visible, WINDOW)
    compared = 0
    for row in range(len(batch.tokens)):
        noisy = example.tokens[row, -WINDOW:]
        start = int(example.positions[row, -WINDOW])
        assert start == int(batch.prompt_len[row]) // block * block
        for offset in range(0, WINDOW, block):
            if not bool(example.weight[row, offset : offset + block].any()):
                continue
            end = start + offset + block
            tokens = batch.tokens[row, :end].clone()
            tokens[-block:] = noisy[offset : offset + block]
            positions = torch.arange(end)
            visible = positions[:, None] // block >= positions // block
            with torch.no_grad():
                plain = network(tokens[None], positions[None], visible[None], block)[0]
            torch.testing.assert_close(doubled[row, offset : offset + block], plain, rtol=1e-4, atol=1e-5)
            compared += 1
    assert compared > 20


@pytest.mark.parametrize("block", [4, 8, 16])
def test_only_the_answer_is_hidden(block: int) -> None:
    batch, sampler = problems(200)
    example = block_diffusion(batch, sampler, block)
    noisy = example.tokens[:, -WINDOW:]
    positions = example.positions[:, -WINDOW:]
    hidden = noisy == MASK
    last = batch.prompt_len + batch.answer_len
    end = (last // block + 1) * block
    assert not bool(hidden[positions < batch.prompt_len[:, None]].any())
    assert not bool(hidden[positions >= end[:, None]].any())
    assert torch.equal(noisy[~hidden], example.targets[~hidden])
    assert not bool((example.tokens[:, :-WINDOW] == MASK).any())
    assert example.tokens.shape[1] == LENGTH - block + WINDOW
    assert torch.equal(example.weight.bool(), hidden & batch.trainable[:, None])
    # The window reaches the end token and the tail of its block, and both are trained.
    reach = positions[:, -1] + 1
    assert bool((reach >= end).all())
    at_end = (positions == last[:, None]) & hidden
    assert set(example.targets[at_end].tolist()) == {EOS}
    whole = (hidden | (positions < batch.prompt_len[:, None]) | (positions >= end[:, None])).all(1)
    assert 0.05 < float(whole.float().mean()) < 0.5


def test_a_canvas_is_hidden_and_what_lies_behind_it_unseen() -> None:
    batch, sampler = problems(300, 96)
    example = full_diffusion(batch, sampler)
    hidden = example.tokens == MASK
    size = example.visible[:, 0].sum(1)
    positions = example.positions
    assert torch.equal(example.visible, (positions < size[:, None])[:, None].expand(-1, 96, -1))
    assert not bool(hidden[positions < batch.prompt_len[:, None]].any())
    assert not bool(hidden[positions >= size[:, None]].any())
    canvas = size - batch.prompt_len
    assert bool((canvas >= batch.answer_len).all())
    assert int(canvas.max()) == 64
    assert {16, 24, 32} <= set(canvas.tolist())
    assert torch.equal(example.tokens[~hidden], batch.tokens[~hidden])
    complete = hidden.sum(1) == canvas
    assert 0.1 < float(complete.float().mean()) < 0.5
