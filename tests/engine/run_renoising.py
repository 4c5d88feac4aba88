# SPDX-License-Identifier: Apache-2.0
"""Runs golden DiffusionGemma cases with their recorded draws; see ``test_golden_diffusion_gemma.py``.

What is drawn is put in at the two places where the engine draws, keyed by where a request stands:
noise (``UniformNoise.draw``) and drawn tokens (``Renoising.row_statistics``). A request's seed says
which case it is.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.engine.golden import cases_of

FOLDER = Path(__file__).parent.parent / "golden" / "diffusion_gemma"
CASES = cases_of(FOLDER)
LOGITS = np.load(FOLDER / "first_forward_logits.npz")

seen: dict[int, list[dict[str, Any]]] = {}
"""By case, the steps that it made: the block, what was accepted, was most probable and so on."""


def _block(start: int, number: int) -> int:
    case = CASES[number]
    return (start - len(case["prompt_ids"])) // int(case["params"]["canvas_length"])


def _recorded(number: int, block: int, what: str, step: int) -> list[int] | None:
    blocks = CASES[number]["blocks"]
    if block >= len(blocks):
        return None
    drawn = blocks[block][what]
    return drawn if what == "init_canvas" else drawn[step] if step < len(drawn) else None


def record_and_replay() -> None:
    """Puts the recorded draws in the place of the engine's."""
    from vllm.v1.diffusion.canvas.renoising import UniformNoise
    from vllm.v1.diffusion.sampling.renoising import Renoising

    computes: Any = Renoising.row_statistics
    chooses: Any = Renoising.choose
    draws: Any = UniformNoise.draw

    def draw(self: Any, slots: torch.Tensor, positions: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        drawn: torch.Tensor = draws(self, slots, positions, number)
        for i, slot in enumerate(slots.tolist()):
            case, step = int(self.seeds.gpu[slot]), int(number[i]) - 1
            block = _block(int(positions[i, 0]), case)
            ids = _recorded(case, block, "init_canvas" if step < 0 else "renoise", step)
            if ids is not None:
                drawn[i, : len(ids)] = torch.tensor(ids)
        return drawn

    def row_statistics(self: Any, logits: Any, step: Any) -> Any:
        plain = logits.plain(torch.arange(len(step.row_slot), device=step.row_slot.device))
        stats, best = computes(self, logits, step)
        sample = stats.sample.clone()
        for i, slot in enumerate(step.slots_np.tolist()):
            case, made = int(self._sampling_states.seeds.gpu[slot]), int(self._canvases.step[slot])
            block = _block(int(self._canvases.start[slot]), case)
            rows = slice(int(step.row_start[i]), int(step.row_start[i + 1]))
            key = f"{CASES[case]['name']}.block{block}.step{made}"
            note: dict[str, Any] = {"block": block, "step": made}
            if key in LOGITS:
                note["logits"] = float((plain[rows].cpu() - torch.from_numpy(LOGITS[key])).abs().max())
            seen.setdefault(case, []).append(note)
            ids = _recorded(case, block, "denoiser", made)
            if ids is not None and CASES[case]["sampler"] == "multinomial":
                sample[rows] = torch.tensor(ids)
        return stats._replace(sample=sample), best

    def choose(self: Any, stats: Any, step: Any) -> Any:
        choice = chooses(self, stats, step)
        for i, slot in enumerate(step.slots_np.tolist()):
            note = seen[int(self._sampling_states.seeds.gpu[slot])][-1]
            width = int(self._canvases.length[slot])
            rows = slice(int(step.row_start[i]), int(step.row_start[i + 1]))
            note["accepted"] = "".join("01"[a] for a in choice.accepted[i, :width].int().tolist())
            note["argmax"] = choice.current[i, :width].tolist()
            note["mean_entropy"] = float(stats.entropy[rows].mean())
            note["done"] = bool(choice.done[i])
        return choice

    replaced: list[tuple[Any, str, Any]] = [
        (UniformNoise, "draw", draw),
        (Renoising, "row_statistics", row_statistics),
        (Renoising, "choose", choose),
    ]
    for cls, name, method in replaced:
        setattr(cls, name, method)


def params_of(number: int) -> Any:
    """A golden case as sampling parameters; its seed is its number."""
    from vllm import DiffusionParams, SamplingParams  # type: ignore[attr-defined]  # lazy

    case = CASES[number]
    params = case["params"]
    return SamplingParams(
        temperature=0.0 if case["sampler"] == "argmax" else 1.0,
        top_k=1 if case["sampler"] == "top_k 1" else 0,
        seed=number,
        max_tokens=params["max_new_tokens"],
        ignore_eos=True,
        stop_token_ids=params["eos_token_id"],
        detokenize=False,
        extra_args=DiffusionParams(
            block_length=params["canvas_length"],
            steps=params["max_denoising_steps"],
            entropy_bound=params["entropy_bound"],
            t_min=params["t_min"],
            t_max=params["t_max"],
            stability_threshold=params["stability_threshold"],
            confidence_threshold=params["confidence_threshold"],
            stats=True,
        ).to_extra_args(),
    )


def main() -> None:
    """Runs each batch of case numbers that standard input holds."""
    from vllm import LLM

    task = json.load(sys.stdin)
    llm = LLM(**task["settings"])  # In this process; its trial steps have no recorded draws.
    record_and_replay()
    results = []
    for batch in task["batches"]:
        seen.clear()
        prompts: Any = [{"prompt_token_ids": CASES[n]["prompt_ids"]} for n in batch]
        outputs = llm.generate(prompts, [params_of(n) for n in batch], use_tqdm=False)
        results.append(
            [
                {"token_ids": list(o.outputs[0].token_ids), "steps": seen[n]}
                for n, o in zip(batch, outputs, strict=True)
            ]
        )
    preempted = sum(getattr(m, "value", 0) for m in llm.get_metrics() if m.name == "vllm:num_preemptions")
    print(json.dumps({"results": results, "preempted": preempted}), flush=True)


if __name__ == "__main__":
    main()
