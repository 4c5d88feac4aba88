# SPDX-License-Identifier: Apache-2.0
"""The engine against the plain loop of LLaDA, on a CPU, with each cache mode.

``python -m benchmarks.full_diffusion`` prints the table of docs/performance.md: one random model of 60
million parameters in LLaDA's shape, float32, tokens per second at batch 1 and 8. The sides take turns, the
figures are medians of the rounds, the ratios are to the plain loop of the same run. The ids of ``none`` must
be the loop's.

On a machine that is busy with other things ``--processor-time`` counts one thread's seconds of work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from benchmarks.kernels.harness import machine

if TYPE_CHECKING:
    from vllm import LLM

CONFIG: dict[str, Any] = {
    "architectures": ["LLaDAModelLM"],
    "model_type": "llada",
    "activation_type": "silu",
    "d_model": 512,
    "n_heads": 8,
    "n_kv_heads": 8,
    "n_layers": 8,
    "mlp_hidden_size": 1536,
    "vocab_size": 32768,
    "max_sequence_length": 2048,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "include_bias": False,
    "include_qkv_bias": False,
    "weight_tying": False,
    "eos_token_id": 32766,
    "pad_token_id": 32766,
    "mask_token_id": 32767,
}
MODES = ("none", "prefix", "dual")


def random_weights(seed: int) -> dict[str, torch.Tensor]:
    """The model's tensors under LLaDA's published names, spread so that choices are clear."""
    generator = torch.Generator().manual_seed(seed)
    width, inner, vocab = CONFIG["d_model"], CONFIG["mlp_hidden_size"], CONFIG["vocab_size"]

    def matrix(rows: int, columns: int, spread: float = 1.0) -> torch.Tensor:
        drawn: torch.Tensor = torch.randn(rows, columns, generator=generator) * (spread / columns**0.5)
        return drawn

    weights = {"wte.weight": torch.randn(vocab, width, generator=generator)}
    for layer in range(CONFIG["n_layers"]):
        name = f"blocks.{layer}."
        weights |= {f"{name}{part}.weight": matrix(width, width) for part in ("q_proj", "k_proj", "v_proj")}
        weights |= {f"{name}{part}.weight": matrix(inner, width) for part in ("ff_proj", "up_proj")}
        weights |= {f"{name}{part}.weight": torch.ones(width) for part in ("attn_norm", "ff_norm")}
        weights[name + "attn_out.weight"] = matrix(width, width)
        weights[name + "ff_out.weight"] = matrix(width, inner)
    weights |= {"ln_f.weight": torch.ones(width), "ff_out.weight": matrix(vocab, width, spread=4.0)}
    return {f"model.transformer.{name}": tensor for name, tensor in weights.items()}


class PlainLoop:
    """LLaDA's published loop: the whole batch recomputed, and all its logits, at every step."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        self.weights = {name.removeprefix("model.transformer."): w for name, w in weights.items()}

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits ``[batch, length, vocabulary]`` of token ids, with bidirectional attention."""
        weights, heads, width = self.weights, CONFIG["n_heads"], (CONFIG["d_model"],)
        eps, size = CONFIG["rms_norm_eps"], CONFIG["d_model"] // CONFIG["n_heads"]
        speed = CONFIG["rope_theta"] ** (-torch.arange(0, size, 2) / size)
        angle = torch.arange(ids.shape[1])[:, None] * speed
        cos, sin = angle.cos(), angle.sin()

        def turned(x: torch.Tensor) -> torch.Tensor:
            a, b = x.chunk(2, dim=-1)
            return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

        x = weights["wte.weight"][ids]
        for layer in range(CONFIG["n_layers"]):
            name = f"blocks.{layer}."
            h = rms_norm(x, width, weights[name + "attn_norm.weight"], eps)
            q, k, v = (
                linear(h, weights[f"{name}{part}_proj.weight"]).unflatten(2, (heads, size)).transpose(1, 2)  # type: ignore[no-untyped-call]
                for part in "qkv"
            )
            a = scaled_dot_product_attention(turned(q), turned(k), v).transpose(1, 2).flatten(2)
            x = x + linear(a, weights[name + "attn_out.weight"])
            h = rms_norm(x, width, weights[name + "ff_norm.weight"], eps)
            h = silu(linear(h, weights[name + "ff_proj.weight"])) * linear(
                h, weights[name + "up_proj.weight"]
            )
            x = x + linear(h, weights[name + "ff_out.weight"])
        return linear(rms_norm(x, width, weights["ln_f.weight"], eps), weights["ff_out.weight"])

    @torch.inference_mode()
    def generate(self, prompts: torch.Tensor, length: int, block: int, steps: int) -> torch.Tensor:
        """Greedy ids ``[batch, length]``; ``steps`` a block, lowest confidence last."""
        mask = CONFIG["mask_token_id"]
        batch, begin = prompts.shape
        ids = torch.cat((prompts, torch.full((batch, length), mask)), dim=1)
        for end in range(begin + block, begin + length + 1, block):
            for step in range(steps):
                count = block // steps + (step < block % steps)
                logits = self.logits(ids)
                token = logits.argmax(dim=-1)
                confidence = logits.softmax(dim=-1).gather(2, token[..., None])[..., 0]
                confidence[ids != mask] = -torch.inf
                confidence[:, end:] = -torch.inf
                chosen = confidence.topk(count, dim=1).indices
                ids.scatter_(1, chosen, token.gather(1, chosen))
        return ids[:, begin:]


def engine_ids(
    llm: LLM, prompts: torch.Tensor, length: int, block: int, steps: int, mode: str
) -> torch.Tensor:
    """The same from the engine, in one batch."""
    from vllm import DiffusionParams, SamplingParams  # type: ignore[attr-defined]  # lazy

    how = DiffusionParams(block_length=block, steps=steps, cache=mode)
    params = SamplingParams(
        temperature=0, max_tokens=length, ignore_eos=True, detokenize=False, extra_args=how.to_extra_args()
    )
    inputs: Any = [{"prompt_token_ids": p} for p in prompts.tolist()]
    outputs = llm.generate(inputs, params, use_tqdm=False)
    return torch.tensor([list(output.outputs[0].token_ids) for output in outputs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompt-length", type=int, default=64)
    parser.add_argument("--length", type=int, default=256, help="tokens to generate")
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="steps per block")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--eager", action="store_true", help="do not compile the engine's model")
    parser.add_argument("--processor-time", action="store_true", help="of one thread, engine in this process")
    parser.add_argument("--seed", type=int, default=2026)
    args = parser.parse_args()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    clock = time.perf_counter
    if args.processor_time:
        clock = time.process_time
        os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
    from vllm import LLM

    weights = random_weights(args.seed)
    plain = PlainLoop(weights)
    generator = torch.Generator().manual_seed(args.seed)
    prompts = torch.randint(
        0, CONFIG["eos_token_id"], (max(args.batch), args.prompt_length), generator=generator
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CONFIG))
        save_file(weights, Path(folder) / "model.safetensors", {"format": "pt"})
        llm = LLM(
            model=folder,
            dtype="float32",
            skip_tokenizer_init=True,
            max_model_len=args.prompt_length + args.length,
            max_num_batched_tokens=max(args.batch) * (args.prompt_length + args.length),
            max_num_seqs=max(args.batch),
            enforce_eager=args.eager,
            diffusion_config={"block_length": args.block},
        )
    how = (args.length, args.block, args.steps)
    sides: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "plain loop": lambda p: plain.generate(p, *how)
    }
    for mode in args.modes:
        sides[mode] = lambda p, mode=mode: engine_ids(llm, p, *how, mode)  # type: ignore[misc]
    parameters = sum(w.numel() for w in weights.values()) / 1e6
    print(
        f"{machine('cpu')}; {parameters:.1f} M parameters, float32; prompt {args.prompt_length}, length "
        f"{args.length}, block {args.block}, {args.steps} steps per block; median of {args.rounds}"
        f"{'; processor time' if args.processor_time else ''}\n"
    )
    print("| batch | " + " | ".join(f"{side}, tokens/s" for side in sides) + " |")
    print("|---" * (len(sides) + 1) + "|")
    for batch in args.batch:
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        ids = {side: run(prompts[:batch]) for side, run in sides.items() if side != "plain loop"}  # warm
        for _ in range(args.rounds):
            for side, run in sides.items():
                begun = clock()
                ids[side] = run(prompts[:batch])
                seconds[side].append(clock() - begun)
        if "none" in ids and not torch.equal(ids["none"], ids["plain loop"]):
            raise SystemExit("The engine's ids are not the plain loop's.")
        rates = {side: batch * args.length / statistics.median(s) for side, s in seconds.items()}
        cells = [f"{rate:.1f} ({rate / rates['plain loop']:.2f} x)" for rate in rates.values()]
        print(f"| {batch} | " + " | ".join(cells) + " |", flush=True)
    llm.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    main()
