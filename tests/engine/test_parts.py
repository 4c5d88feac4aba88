# SPDX-License-Identifier: Apache-2.0
"""Every family's model, spread over two processes: its layers' shards, its stages, adapters, int8 weights."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import warm
from tests.engine.cases import random_prompt
from tests.engine.odd import ODD
from tests.engine.published import PUBLISHED
from tests.engine.quantised import quantise
from vllm.v1.diffusion.families import FAMILIES

IDS = list(random_prompt(37, 1))
SETTINGS: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parts")


@pytest.fixture(scope="module")
def deltas(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """What the adapters add; checkpoints and adapters are written below the folder."""
    return {
        name: published.adapter(published.write(folder / name), folder / f"{name} adapter", 3)
        for name, published in PUBLISHED.items()
    }


@pytest.fixture(scope="module")
def rounded(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """What int8 adds to the weights; the checkpoints are written below the folder."""
    return {
        name: quantise(published.write(folder / name), folder / f"{name} int8")
        for name, published in PUBLISHED.items()
    }


@pytest.fixture(scope="module")
def found(folder: Path, deltas: dict[str, Any], rounded: dict[str, Any]) -> dict[str, Any]:
    """Logits of every family: on two ranks plain, adapted and in int8, in two stages."""
    ranks, stages = [], []
    for name, published in PUBLISHED.items():
        settings = SETTINGS | {"model": str(published.write(folder / name))}
        stages.append({"name": f"{name}, stages", "ids": IDS, "settings": settings})
        settings = settings | {"tensor_parallel_size": 2}
        how: dict[str, Any] = {}
        if not published.experts:
            settings |= {"enable_lora": True, "max_lora_rank": 8}
            how["adapter"] = str(folder / f"{name} adapter")
        ranks.append({"name": f"{name}, ranks", "ids": IDS, "settings": settings} | how)
        settings = SETTINGS | {"model": str(folder / f"{name} int8"), "tensor_parallel_size": 2}
        ranks.append({"name": f"{name}, int8", "ids": IDS, "settings": settings})
    for name, published in ODD.items():
        settings = SETTINGS | {"model": str(published.write(folder / name)), "tensor_parallel_size": 2}
        ranks.append({"name": name, "ids": IDS, "settings": settings})
    task = {"world": 2, "init": f"file://{folder}/meet-{os.getpid()}", "output": str(folder / "found")}
    task["groups"] = [[[2, 1], ranks], [[1, 2], stages]]
    logs = [folder / f"log{rank}" for rank in range(2)]
    processes = []
    for rank, log in enumerate(logs):
        (folder / f"task{rank}").write_text(json.dumps(task | {"rank": rank}))
        with (folder / f"task{rank}").open() as given, log.open("w") as errors:
            processes.append(
                warm.start(
                    "tests.engine.run_parts",
                    streams=(given, errors, errors),
                    env=os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "nobind"},
                )
            )
    codes = [process.wait(timeout=600) for process in processes]
    assert codes == [0, 0], "".join(log.read_text()[-6000:] for log in logs)
    found: dict[str, Any] = torch.load(folder / "found")
    return found


# Its layers read what its loop prepares for every forward; test_golden_diffusion_gemma.py has its engine.
WITH_ITS_LOOP = {"DiffusionGemma"}


def test_every_family_is_here() -> None:
    assert set(PUBLISHED) | WITH_ITS_LOOP == {family.name for family in FAMILIES}


@pytest.mark.parametrize("spread", ["ranks", "stages", "ranks, adapted"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_logits_are_the_references(
    name: str, spread: str, folder: Path, deltas: dict[str, Any], found: dict[str, Any]
) -> None:
    published = PUBLISHED[name]
    adapted = spread.endswith("adapted")
    if adapted and published.experts:
        pytest.skip("refused on a CPU; see test_refused_options.py")
    got = found[f"{name}, {spread}"]
    plain = published.logits(published.write(folder / name), IDS, {})
    want = published.logits(published.write(folder / name), IDS, deltas[name]) if adapted else plain
    torch.testing.assert_close(got[:, : want.shape[1]], want, atol=1e-3, rtol=1e-4)
    assert got.argmax(-1).tolist() == want.argmax(-1).tolist()
    if adapted:
        assert (got.argmax(-1) != plain.argmax(-1)).any()


@pytest.mark.parametrize("name", [*(f"{name}, ranks" for name in PUBLISHED), *ODD])
def test_shares_of_the_vocabulary_say_what_whole_rows_say(name: str, found: dict[str, Any]) -> None:
    """Each rank has the logits of its ids alone, and none of them is lost or doubled."""
    shared = dict(found[f"{name}, shared"])
    whole = shared.pop("whole")
    assert shared.pop("share") < whole.shape[1]
    assert torch.equal(shared.pop("gathered"), whole)
    for banned in [key.removeprefix("alone ") for key in shared if key.startswith("alone")]:
        merged, alone = shared[f"merged {banned}"], shared[f"alone {banned}"]
        assert merged[0].tolist() == alone[0].tolist()
        torch.testing.assert_close(merged[1:], alone[1:], rtol=2.5e-6, atol=2.5e-6)


@pytest.mark.parametrize("name", ODD)
def test_what_a_configuration_can_say(name: str, folder: Path, found: dict[str, Any]) -> None:
    got, want = found[name], ODD[name].logits(folder / name, IDS, {})
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-4)
    assert got.argmax(-1).tolist() == want.argmax(-1).tolist()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_quantised_checkpoint_is_its_rounded_weights(
    name: str, folder: Path, rounded: dict[str, Any], found: dict[str, Any]
) -> None:
    """Layers that the configuration leaves out, by their published names, are as they were.

    Activations are rounded too, which may turn a router's choice: so the median row counts.
    """
    published, got = PUBLISHED[name], found[f"{name}, int8"]
    want = published.logits(published.write(folder / name), IDS, rounded[name])
    apart = (got[:, : want.shape[1]] - want).norm(dim=1) / want.norm(dim=1)
    assert 0 < apart.median() < 0.2
