"""`make gpu`: tests, tuning and measurements on this machine's GPU with this interpreter. Installs nothing.

What matters most comes first. A piece that outlasts its time is interrupted and keeps what it measured; in the end
`targets.md` sets the figures beside what kvtool aims at. Exit codes: 0 done, 1 a test or a run failed or there was no
time for it, 3 something that is needed is not here.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
NEEDED = (
    *("torch", "triton", "numpy", "safetensors", "msgspec", "yaml"),
    *("typer", "rich", "pandas", "matplotlib", "pytest", "hypothesis", "transformers"),
)
GRACE_S = 15.0  # for an interrupted run to write what it has
KVTOOL = "from kvtool.__main__ import main; main()"
KERNELS = "--block-size 64 --peers all"
BENCH = "--parts latency --block-size 64 --num-iters 3"


@dataclass(frozen=True, slots=True)
class Piece:
    """A command of kvtool with a folder of its own under --out, and the seconds that it may take."""

    name: str
    arguments: str
    limit_s: float


# The points that `tools/targets.py` looks for. Shapes whose weights fit a card of 40 GB.
SUITE = (
    Piece("kernels", f"kernels llama-3.1-8b --context 1k,4k --batch-size 1,32 --kv-cache-dtype bf16,fp8 {KERNELS}", 60),
    Piece("bench-llama-3.1-8b", f"bench llama-3.1-8b --input-len 1k --batch-size 1 --output-len 128 {BENCH}", 45),
    Piece("kernels-16k", f"kernels llama-3.1-8b --context 16k --batch-size 8 --chunk-len 16k {KERNELS}", 30),
    Piece("bench-qwen3-0.6b", f"bench qwen3-0.6b --input-len 1k --batch-size 1 --output-len 128 {BENCH}", 30),
    Piece("kernels-long", f"kernels llama-3.1-8b --context 32k,128k --batch-size 1 --chunk-len 2k {KERNELS}", 30),
    Piece("bench-llama-3.2-1b", f"bench llama-3.2-1b --input-len 1k --batch-size 1 --output-len 128 {BENCH}", 30),
    Piece("kernels-mla-16", f"kernels deepseek-v2-lite --context 8k --batch-size 32 --chunk-len 2k {KERNELS}", 25),
    Piece("kernels-mla-128", f"kernels deepseek-v3 --context 8k --batch-size 32 --chunk-len 2k {KERNELS}", 25),
    Piece(
        "bench-deepseek-v2-lite", f"bench deepseek-v2-lite --input-len 1k --batch-size 1 --output-len 64 {BENCH}", 40
    ),
    Piece("bench-llama-3.1-8b-x64", f"bench llama-3.1-8b --input-len 4k --batch-size 64 --output-len 32 {BENCH}", 70),
    Piece("bench-llama-3.1-8b-8k", f"bench llama-3.1-8b --input-len 8k --batch-size 1 --output-len 8 {BENCH}", 35),
    Piece(
        "bench-peers",
        f"bench llama-3.2-1b --input-len 1k --batch-size 1,8 --output-len 64 {BENCH} --peers all",
        90,
    ),
    Piece("kernels-8k", f"kernels llama-3.1-8b --context 8k --batch-size 16 --chunk-len 8k {KERNELS}", 30),
    Piece("bench", "bench --parts prefix,no-cache", 40),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One process: its name, its command line and its seconds."""

    name: str
    command: list[str]
    limit_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="folder for the documents")
    parser.add_argument("--minutes", type=float, default=8, help="stop after so many (default: 8)")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and for how long at most")
    options = parser.parse_args()
    out, deadline = options.out.resolve(), time.monotonic() + 60 * options.minutes
    if options.dry_run:
        for run in runs(out):
            print(f"{run.limit_s:4.0f} s  {shlex.join(run.command)}")
        return
    if (lack := what_is_missing()) is not None:
        print(f"make gpu: {lack}", file=sys.stderr)
        sys.exit(3)
    failed = [run.name for run in runs(out) if not succeeds(run, deadline)]
    tell_targets(out)
    if failed:
        print(f"make gpu: failed or cut short: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)
    print(f"make gpu: every test passed; the documents are in {out}")


def what_is_missing() -> str | None:
    """One line that says why no measurement can start here, or None."""
    absent = [name for name in NEEDED if find_spec(name) is None]
    if absent:
        return f"{sys.executable} cannot import {', '.join(absent)}: install them, or put them on PYTHONPATH"
    import torch

    if not torch.cuda.is_available():
        return f"no CUDA device: torch {torch.__version__} of {sys.executable} sees none, so nothing was measured"
    return None


def runs(out: Path) -> list[Run]:
    """What to run, in this order: the tests, the tuning that the measurements profit from, the measurements."""
    kvtool = [sys.executable, "-c", KVTOOL]
    tools = ROOT / "tools"
    return [
        Run("tests", [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu"], 100),
        Run("env", [*kvtool, "env", "--measure"], 20),
        Run("tune", [sys.executable, str(tools / "tune.py"), "--out", str(out), "--seconds", "70"], 90),
        *(Run(p.name, [*kvtool, *shlex.split(p.arguments), "--out", str(out / p.name)], p.limit_s) for p in SUITE),
    ]


Wait = Callable[["subprocess.Popen[bytes]", float], int]


def succeeds(run: Run, deadline: float, wait: Wait = subprocess.Popen.wait) -> bool:
    """Run it in the checkout, whether or not kvtool is installed; say what runs, and whether time ran out.

    Out of time (`wait` raises TimeoutExpired) it is interrupted, as by Ctrl-C, which makes kvtool write what it has,
    and stopped if that takes long.
    """
    limit_s = min(run.limit_s, deadline - time.monotonic())
    print(f"\n$ {shlex.join(run.command)}", flush=True)
    if limit_s <= 0:
        print("no time left for this: give more --minutes", flush=True)
        return False
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(run.command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path})
    try:
        return wait(process, limit_s) == 0
    except subprocess.TimeoutExpired:
        print(f"{run.name} outlasted its {limit_s:.0f} s: interrupted", flush=True)
        stop(process)
        return False


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C, and after GRACE_S the end."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def tell_targets(out: Path) -> None:
    """`targets.json` and `targets.md` of all documents in the folder, and the second one on standard output."""
    sys.path.insert(0, str(ROOT))
    from tools.targets import write_targets

    print("\n" + write_targets(out))


if __name__ == "__main__":
    main()
