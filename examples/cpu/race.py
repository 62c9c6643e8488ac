"""Prefill and decode on this CPU in turns with llama.cpp and vLLM: times, and kvtool's over theirs. It builds nothing.

python examples/cpu/race.py smollm2/hf                                                  # kvtool alone
python examples/cpu/race.py smollm2/hf --gguf SmolLM2-135M-BF16.gguf                    # llama-batched-bench in PATH
python examples/cpu/race.py model.Q8_0.gguf --gguf model.Q8_0.gguf --batch-size 1       # the same file in both
python examples/cpu/race.py smollm2/hf --gguf model.gguf --llama-option=--no-repack     # more for llama-batched-bench
python examples/cpu/race.py smollm2/hf --vllm vllm-venv                                 # vllm-venv/bin/vllm
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OWN = "kvtool"


@dataclass(frozen=True, slots=True)
class Shape:
    """A batch of sequences of `prompt` tokens, and the tokens that each gets."""

    batch: int
    prompt: int
    output: int


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds of all prompts of a batch, and of a step that gives each sequence a token."""

    prefill_ms: float
    token_ms: float


Contestant = Callable[[Shape], Times]
"""The times of a shape, in a process of its own."""


def own(weights: str, threads: int, iterations: int) -> Contestant:
    def run(shape: Shape) -> Times:
        flags = {"input-len": shape.prompt, "output-len": shape.output, "batch-size": shape.batch, "threads": threads}
        flags |= {"num-iters": iterations, "num-iters-warmup": 1}
        command = [sys.executable, "-m", "kvtool", "bench", weights, "--dtype", "bf16", "--parts", "latency", "--json"]
        document = json.loads(output_of([*command, *(f"--{name}={value}" for name, value in flags.items())]))
        metrics = document["cases"][0]["metrics"]
        prefill_s = shape.batch * shape.prompt / float(metrics["prefill_tokens_per_s"])
        return Times(1e3 * prefill_s, float(metrics["tpot_ms"]["p50"]))

    return run


def llama_cpp(gguf: str, threads: int, options: Sequence[str] = ()) -> Contestant:
    """`llama-batched-bench` with these further options: its time of all prompts, and that of its decode over its
    steps."""
    program = required("llama-batched-bench", "build llama.cpp, and put its folder of programs in PATH")

    def run(shape: Shape) -> Times:
        tokens = shape.batch * (shape.prompt + shape.output)
        flags = ["-m", gguf, "-npp", shape.prompt, "-ntg", shape.output, "-npl", shape.batch, "-c", tokens]
        flags += ["-t", threads, "-tb", threads, "--output-format", "jsonl", *options]
        return times_of(output_of([program, *map(str, flags)]))

    return run


def times_of(lines: str) -> Times:
    """The last line of `llama-batched-bench --output-format jsonl` that is one. Ends where there is none."""
    found = [line for line in lines.splitlines() if line.startswith("{")]
    if not found:
        sys.exit("llama-batched-bench ended well and told no times: has it --output-format jsonl?")
    last: dict[str, Any] = json.loads(found[-1])
    return Times(1e3 * float(last["t_pp"]), 1e3 * float(last["t_tg"]) / int(last["tg"]))


def vllm(venv: str, folder: str, threads: int) -> Contestant:
    """`vllm bench latency` with one token, and with the output: what lies between, over the tokens between."""
    program = required(str(Path(venv) / "bin" / "vllm"), "install vLLM for CPUs into that environment")

    def latency_s(shape: Shape, output: int) -> float:
        with tempfile.TemporaryDirectory() as temporary:
            written = Path(temporary) / "latency.json"
            flags = {"input-len": shape.prompt, "output-len": output, "batch-size": shape.batch, "num-iters": 3}
            flags |= {"num-iters-warmup": 1, "max-model-len": shape.prompt + shape.output, "output-json": str(written)}
            command = [program, "bench", "latency", f"--model={folder}", "--dtype=bfloat16"]
            threaded = ["env", f"OMP_NUM_THREADS={threads}", "VLLM_CPU_OMP_THREADS_BIND=nobind", "HF_HUB_OFFLINE=1"]
            output_of([*threaded, *command, *(f"--{name}={value}" for name, value in flags.items())])
            return float(json.loads(written.read_text())["avg_latency"])

    def run(shape: Shape) -> Times:
        first_s, all_s = latency_s(shape, 1), latency_s(shape, shape.output)
        return Times(1e3 * first_s, 1e3 * (all_s - first_s) / (shape.output - 1))

    return run


def required(program: str, otherwise: str) -> str:
    """Where the program is. Ends with what would help where it is not."""
    found = shutil.which(program)
    if found is None:
        sys.exit(f"{program} is not here: {otherwise}")
    return found


def output_of(command: list[str]) -> str:
    """Ends with how a program failed, and with the last line that it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["it said nothing"]
        sys.exit(f"{command[0]} {fate(done.returncode)}: {said[-1]}")
    return done.stdout


def fate(status: int) -> str:
    """In words how a program ended: a shell gives 128 and the number of a signal, subprocess its negative."""
    number = -status if status < 0 else status - 128
    if number in set(signal.Signals):
        return f"was killed by {signal.Signals(number).name}"
    return f"failed with exit status {status}"


def race(contestants: dict[str, Contestant], shape: Shape, rounds: int) -> Iterator[str]:
    """A line a contestant: its medians, and the medians over rounds of kvtool's times over those of the same round."""
    found: dict[str, list[Times]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            found[name].append(run(shape))
    for name, times in found.items():
        yield f"{shape.batch:>3} x {shape.prompt:<6} {name:<28} {row(found[OWN], times)}"


def row(own_times: list[Times], times: list[Times]) -> str:
    """Median times, and the median of kvtool's over those of the same round."""
    cells = []
    for part in ("prefill_ms", "token_ms"):
        mine, theirs = ([float(getattr(one, part)) for one in side] for side in (own_times, times))
        ratio = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
        cells.append(f"{statistics.median(theirs):10.2f}" + (" " * 6 if times is own_times else f" {ratio:4.2f}x"))
    return " ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="folder with config.json and safetensors, or a .gguf file, for kvtool")
    parser.add_argument("--gguf", action="append", default=[], help="a file for llama-batched-bench, which is in PATH")
    parser.add_argument(
        "--llama-option", action="append", default=[], help="one more for it, as --llama-option=--no-repack"
    )
    parser.add_argument("--vllm", help="an environment that has vLLM for CPUs")
    parser.add_argument("--batch-size", default="1,8")
    parser.add_argument("--input-len", default="512,2048")
    parser.add_argument("--output-len", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num-iters", type=int, default=3, help="of kvtool in a round, after one that is thrown away")
    asked = parser.parse_args()
    contestants = {OWN: own(asked.weights, asked.threads, asked.num_iters)}
    peers = {file: llama_cpp(file, asked.threads, asked.llama_option) for file in asked.gguf}
    contestants |= {f"llama.cpp {Path(file).stem}": peer for file, peer in peers.items()}
    if asked.vllm:
        contestants["vLLM"] = vllm(asked.vllm, asked.weights, asked.threads)
    print(f"{'batch x prompt':<41} {'prompts ms':>10}       {'token ms':>10}       ({OWN}'s over each)")
    for batch in map(int, asked.batch_size.split(",")):
        for prompt in map(int, asked.input_len.split(",")):
            for line in race(contestants, Shape(batch, prompt, asked.output_len), asked.rounds):
                print(line, flush=True)


if __name__ == "__main__":
    main()
