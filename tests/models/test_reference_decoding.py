"""The trainer's reference decoding, against the published code's ids and by its own rules."""

import json
from pathlib import Path

import pytest
import torch
from tinydlm.checkpoint import load
from tinydlm.decoding import Decoding, generate
from tinydlm.network import Network, NetworkConfig

GOLDEN = Path(__file__).parents[1] / "golden"
STRATEGIES = {
    "low_confidence_static": "static",
    "low_confidence_dynamic": "dynamic",
    "sequential": "sequential",
}


def network(family: str, block: int = 8) -> Network:
    torch.manual_seed(1)
    shape = {"hidden_size": 64, "ffn_size": 64, "layers": 2, "heads": 2, "kv_heads": 2}
    return Network(NetworkConfig(family, block, **shape)).eval()


def test_sdar_golden_ids() -> None:
    model = load(GOLDEN / "sdar")
    cases = json.loads((GOLDEN / "sdar" / "cases.json").read_text())["cases"]
    checked = 0
    for case in cases:
        params = case["params"]
        if params["remasking_strategy"] not in STRATEGIES or len(case["prompt_ids"]) > 140:
            continue
        decoding = Decoding(
            STRATEGIES[params["remasking_strategy"]],
            params["denoising_steps"],
            params["confidence_threshold"],
            params["block_length"],
        )
        stops = params["stopping_criteria_idx"] or []
        output = generate(
            model, [case["prompt_ids"]], params["gen_length"], decoding, params["mask_id"], stops
        )
        assert output.ids[0][: len(case["output_ids"])] == case["output_ids"], case["name"]
        checked += 1
    assert checked >= 5


@pytest.mark.parametrize("family", ["sdar", "llada"])
@pytest.mark.parametrize("decoding", [Decoding("static", 4), Decoding("dynamic", 8, 0.01)])
def test_a_row_does_not_depend_on_its_batch(family: str, decoding: Decoding) -> None:
    model = network(family)
    prompts = [[97, 98, 99], list(range(40, 60)), [100] * 9]
    together = generate(model, prompts, 16, decoding, stop_ids=())
    alone = [generate(model, [prompt], 16, decoding, stop_ids=()) for prompt in prompts]
    assert together.ids == [output.ids[0] for output in alone]
    assert together.forwards == [output.forwards[0] for output in alone]


@pytest.mark.parametrize(("steps", "forwards"), [(1, 2), (2, 4), (3, 6), (8, 16)])
def test_static_steps_are_forwards(steps: int, forwards: int) -> None:
    for family in ("sdar", "llada"):
        prompt = [[65] * 8]
        output = generate(network(family), prompt, 16, Decoding("static", steps), stop_ids=())
        assert output.forwards == [forwards]


def test_blocks_align_to_positions_for_sdar_and_to_the_prompt_for_llada() -> None:
    prompt = [[65] * 3]
    one = Decoding("static", 1)
    assert generate(network("sdar"), prompt, 16, one, stop_ids=()).forwards == [3]
    assert generate(network("llada"), prompt, 16, one, stop_ids=()).forwards == [2]


def test_a_stop_id_ends_sdar_after_its_block() -> None:
    model = network("sdar")
    free = generate(model, [[65] * 8], 32, Decoding("static", 8), stop_ids=())
    stop = free.ids[0][3]
    stopped = generate(model, [[65] * 8], 32, Decoding("static", 8), stop_ids=(stop,))
    assert stopped.ids[0][:8] == free.ids[0][:8]
    assert stopped.forwards == [8]
    assert free.forwards == [32]


def test_selection() -> None:
    confidence = torch.tensor([[0.2, 0.95, 0.9, 0.99, 0.5]])
    hidden = torch.tensor([[True, True, True, False, True]])
    two = torch.tensor([2])

    def chosen(decoding: Decoding, quota: torch.Tensor) -> list[int]:
        rows: list[int] = decoding.select(confidence, hidden, quota)[0].nonzero().flatten().tolist()
        return rows

    assert chosen(Decoding("static"), two) == [1, 2]
    assert chosen(Decoding("sequential"), two) == [0, 1]
    assert chosen(Decoding("dynamic", 16, 0.4), two) == [1, 2, 4]
    assert chosen(Decoding("dynamic", 16, 0.9), two) == [1, 2]  # one is above: the best two
    assert chosen(Decoding("dynamic", 16, 0.95), two // 2) == [1]  # strictly above
    assert chosen(Decoding("static"), torch.tensor([9])) == [0, 1, 2, 4]


def test_quota_gives_the_remainder_to_early_steps() -> None:
    steps = torch.arange(3)
    assert Decoding("static", 3).quota(steps, 8).tolist() == [3, 3, 2]
    assert Decoding("static", 8).quota(torch.arange(8), 8).tolist() == [1] * 8
