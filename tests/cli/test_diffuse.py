# SPDX-License-Identifier: Apache-2.0
"""``vllm diffuse`` as its users run it."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import warm
from tests.cli.screen import OnTerminal

MASK = "░"
COMMAND = [sys.executable, "-m", "vllm.entrypoints.cli.main", "diffuse"]
GOLDEN = Path(__file__).parent.parent / "golden" / "sdar"

PACED = "tests.policies.test_parameters.Paced"
"""A policy with numbers of its own, by its dotted path."""


def run(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], input=text, capture_output=True, text=True, timeout=300)


def nothing_but_progress(stderr: str) -> bool:
    return all(line.startswith(("importing …", "starting the engine …")) for line in stderr.splitlines())


@pytest.fixture
def terminal() -> Iterator[Any]:
    started: list[OnTerminal] = []

    def start(*arguments: str, **size: int) -> OnTerminal:
        started.append(OnTerminal([*COMMAND, *arguments], **size))
        return started[-1]

    yield start
    for program in started:
        program.kill()


def test_the_demo_without_a_terminal() -> None:
    done = run("--demo", "9")
    assert done.returncode == 0, done.stderr
    *answers, verdict, rate = done.stdout.splitlines()
    assert [line.split()[0] for line in answers] == ["sudoku", "add", "sort", "reverse"] * 2 + ["sudoku"]
    assert all("  [right, " in line for line in answers)
    assert verdict == "9 of 9 answers are right."
    assert "tokens per second" in rate
    assert "tokens per forward" in rate
    assert "\033" not in done.stdout
    assert MASK not in done.stdout
    assert nothing_but_progress(done.stderr), done.stderr


PROMPTS = ["sort 4231=", "ünbekannt 日本</script>=", "reverse stone="]


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What one run prints as JSON, and the page that it writes."""
    page = tmp_path_factory.mktemp("trace") / "page.html"
    how = ["--algorithm", "low_confidence_static", "--steps", "4", "--trace", str(page)]
    done = run("--json", "--prompt", *PROMPTS, *how)
    assert done.returncode == 0, done.stderr
    return done, page.read_text("utf-8")


def test_json_and_what_the_tokenizer_does_not_know(printed: Any) -> None:
    done, _ = printed
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r["prompt"] for r in results] == PROMPTS
    assert (results[0]["text"], results[2]["text"]) == ("1234", "enots")
    for result in results:
        assert len(result["trace"]) == len(result["token_ids"]) == sum(result["blocks"])
        # What stands behind the end token is denoised too, and cut off.
        assert result["steps"] > max(step for step, _ in result["trace"])
        assert "right" not in result
    assert results[0]["finish_reason"] == "stop"
    assert nothing_but_progress(done.stderr), done.stderr


def test_the_page_replays_what_was_printed(printed: Any, browser: Any) -> None:
    done, page = printed
    results = [json.loads(line) for line in done.stdout.splitlines()]
    script = """
    const shown = (card) => [...card.querySelectorAll(".cell:not(.masked)")].map((cell) => cell.textContent);
    const at = (step) => {
      location.hash = `step=${step}`;
      onhashchange();
      return [...document.querySelectorAll("article")].map(shown);
    };
    const how = document.getElementById("how").textContent;
    const last = Number(document.getElementById("slider").max);
    return { how, steps: [...Array(last + 1).keys()].map(at) };
    """
    seen = browser.report(page, script)
    assert "algorithm low_confidence_static" in seen["how"]
    assert "steps 4" in seen["how"]
    assert len(seen["steps"]) == 1 + max(r["steps"] for r in results)
    for step, shown in enumerate(seen["steps"]):
        for result, cells in zip(results, shown, strict=True):
            assert len(cells) == sum(unmasked < step for unmasked, _ in result["trace"])
    answers = ["".join(c for c in cells if not c.startswith("<")) for cells in seen["steps"][-1]]
    assert (answers[0], answers[2]) == ("1234", "enots")


def test_interactive_on_a_terminal(terminal: Any) -> None:
    """Masks are drawn, unmask, and become the answer; a bad prompt and Ctrl-C end in peace."""
    program = terminal("--interactive", "--algorithm", "sequential", "--steps", "16", "--max-model-len", "64")
    program.read_until("> ")
    assert "starting the engine …" in program.raw
    # No other process has imported vLLM for it.
    assert psutil.Process(program.process.pid).children(recursive=True) == []
    program.screen.frames.clear()
    program.type("reverse stone=\r")
    program.read_until("tokens per forward]")
    program.read_until("> ")
    drawn = [row for frame in program.screen.frames for row in frame.splitlines()]
    steps = [row for row in drawn if row.startswith("reverse stone=") and "tokens" not in row]
    # 14 tokens of prompt leave 2 of the first block of 16; the answer and its end take 6.
    expected = [f"{'enots'[:n]}{MASK * (2 - n)}" for n in range(3)]
    expected += [f"{'enots'[:n]}{MASK * (6 - n)}" for n in range(2, 6)] + ["enots"]
    assert list(dict.fromkeys(steps)) == [f"reverse stone={answer}" for answer in ["", *expected]]
    answer = program.screen.text.splitlines()[-2]
    assert answer.startswith("reverse stone=enots  [")
    program.type("x" * 80 + "\r")
    program.read_until("vllm diffuse: error: prompt 'xxx")
    program.read_until("> ")
    program.type("add 3+4=\r")
    program.read_until("add 3+4=")
    program.read_until("tokens per forward]")
    program.read_until("> ")
    assert program.screen.text.splitlines()[-2].startswith("add 3+4=7  [")
    program.type("\x03")
    assert program.end(key="\x03") == 130
    assert "Traceback" not in program.raw
    assert "Warning" not in program.raw
    assert "leaked" not in program.raw


def test_interrupted_while_it_starts(terminal: Any) -> None:
    program = terminal("--prompt", "add 1+1=")
    program.read_until("starting the engine …")
    program.type("\x03")
    assert program.end() == 130
    assert "Traceback" not in program.raw


def test_whoever_reads_may_go_away() -> None:
    """``vllm diffuse ... | head -1``"""
    command = " ".join([*COMMAND, "--json", "--prompt", "'add 1+1='", "'add 2+2='", "| head -c 5"])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, timeout=300
    )
    assert done.stdout == '{"pro'
    assert "Error" not in done.stderr


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Runs the command where it fails before an engine is started."""
    from vllm.entrypoints.cli.diffuse import DiffuseSubcommand
    from vllm.v1.diffusion.cli.main import run as run_command

    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # As the command sets it, in this test alone.
    handler = signal.getsignal(signal.SIGINT)

    def call(*arguments: str) -> tuple[int, str, str]:
        parser = argparse.ArgumentParser()
        subparsers: Any = parser.add_subparsers()
        DiffuseSubcommand().subparser_init(subparsers)
        status = run_command(parser.parse_args(["diffuse", *arguments]))
        return status, *capfd.readouterr()

    yield call
    signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model", "/no/such/folder"], "/no/such/folder"),
        (["--model", str(Path(__file__).parent)], "has no config.json"),
        (["--model", "x", "--bundled", "sdar"], "exclude each other"),
        (["--bundled", "nothing"], "family='nothing'"),
        (["--dtype", "float13"], "dtype"),
        (["--trace", "/no/such/folder/page.html"], "/no/such/folder/page.html"),
        (["--trace", "/"], "directory"),
        (["--temperature", "-1"], "temperature"),
        (["--max-tokens", "0"], "max_tokens"),
        (["--max-model-len", "8"], "max_model_len=8"),
        (["--algorithm", "guess"], "diffusion_algorithm"),
        (["--steps", "0"], "diffusion_steps"),
        (["--block-length", "3"], "diffusion_block_length"),
        (["--threshold", "2"], "diffusion_threshold"),
        (["--entropy-bound", "1"], "diffusion_entropy_bound"),
        (["--policy-option", "pace=3"], "--policy-option pace=3: needs --algorithm"),
        (["--algorithm", "threshold", "--policy-option", "pace=3"], "diffusion_pace has no effect"),
        (["--algorithm", "threshold", "--policy-option", "eps=1"], "has an option of its own, --eps"),
        (["--algorithm", "threshold", "--policy-option", "pace"], "must be NAME=VALUE"),
        (["--algorithm", PACED, "--policy-option", "pace=10"], "diffusion_pace=10 must be an integer"),
    ],
)
def test_what_cannot_be_used_is_told_in_a_line(in_this_process: Any, arguments: Any, named: Any) -> None:
    status, out, err = in_this_process(*arguments)
    assert status == 2
    assert out == ""
    errors = [line for line in err.splitlines() if not nothing_but_progress(line)]
    assert len(errors) == 1
    assert errors[0].startswith("vllm diffuse: error: ")
    assert named in errors[0]


def test_every_parameter_is_an_option() -> None:
    """Their names, types and help come from ``DiffusionParams``, whatever is added to it."""
    from vllm.entrypoints.cli.diffuse import DiffuseSubcommand
    from vllm.v1.diffusion.cli.options import diffusion_params
    from vllm.v1.diffusion.request.params import DiffusionParams, parameters

    values = {"boolean": None, "string": "sequential", "integer": 1, "number": 1}
    others = (
        "trace",
        "trace_top_k",
        "stream",
        "stats",
        "likelihood",
        "score_from",
        "score_samples",
        "score_seed",
    )
    schemas = {name: one.schema for name, one in parameters().items() if name not in others}
    given = {
        name: schema.get("enum", [values[schema["type"]]])[0]
        for name, schema in schemas.items()
        if schema["type"] in values
    }
    assert len(given) > 12
    words = [w for n, v in given.items() for w in (f"--{n.replace('_', '-')}", v) if w is not None]
    parser = argparse.ArgumentParser()
    subparsers: Any = parser.add_subparsers()
    DiffuseSubcommand().subparser_init(subparsers)
    asked = diffusion_params(parser.parse_args(["diffuse", *map(str, words)]))
    expected: dict[str, Any] = {name: True if value is None else value for name, value in given.items()}
    assert asked == DiffusionParams(**expected, trace=True)
    old = parser.parse_args(["diffuse", "--eps", "0.5", "--confidence-eos-eot-inf"])
    assert diffusion_params(old) == DiffusionParams(end_time=0.5, end_tokens_last=True, trace=True)
    assert diffusion_params(parser.parse_args(["diffuse"])) == DiffusionParams(trace=True)
    with pytest.raises(SystemExit) as done:
        parser.parse_args(["diffuse", "--help"])
    assert done.value.code == 0


def test_numbers_of_another_package_s_policy() -> None:
    """They are declared by the policy, whose package the options' declaration does not import."""
    from vllm.entrypoints.cli.diffuse import DiffuseSubcommand
    from vllm.v1.diffusion.cli.options import diffusion_params
    from vllm.v1.diffusion.request.params import DiffusionParams

    parser = argparse.ArgumentParser()
    subparsers: Any = parser.add_subparsers()
    DiffuseSubcommand().subparser_init(subparsers)
    options = ["--policy-option", "pace=3", "--policy-option", "must=0.5", "--threshold", "0.25"]
    asked = diffusion_params(parser.parse_args(["diffuse", "--algorithm", PACED, *options]))
    assert asked == DiffusionParams(algorithm=PACED, pace=3, must=0.5, threshold=0.25, trace=True)
    assert asked.to_extra_args()["diffusion_pace"] == 3
    twice = parser.parse_args(["diffuse", "--algorithm", PACED, *options[:2] * 2])
    with pytest.raises(ValueError, match="--policy-option pace=3: is given twice"):
        diffusion_params(twice)


def test_an_autoregressive_model_is_refused(in_this_process: Any, tmp_path: Path) -> None:
    config = json.loads((GOLDEN / "config.json").read_text())
    config |= {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    for name in ("auto_map", "mask_token_id"):  # Either shows a diffusion model.
        config.pop(name, None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    status, _, err = in_this_process("--model", str(tmp_path))
    assert status == 2
    assert "no masked-diffusion model (Qwen3ForCausalLM)" in err.splitlines()[-1]


def test_infill() -> None:
    """The bidirectional model sees what stands behind a hole."""
    template = "sudoku 1003/0300/3210/4132=<|hole:2|>23/2341/3<|hole:3|>/4132"
    arguments = ["diffuse", "--bundled", "llada", "--json", "--infill", template]
    done = warm.run("vllm.entrypoints.cli.main", arguments)
    assert done.returncode == 0, done.stderr
    (result,) = map(json.loads, done.stdout.splitlines())
    assert result["prompt"] == "sudoku 1003/0300/3210/4132="
    assert result["text"] == "1423/2341/3214/4132"
    given = [step < 0 for step, _ in result["trace"]]
    assert given == [False] * 2 + [True] * 9 + [False] * 3 + [True] * 5
