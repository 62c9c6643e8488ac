"""`make gpu`: the GPU tests and a suite of measurements with this interpreter, into a folder. Installs nothing.

Exit codes: 0 done, 1 a test or a run failed or there was no time for it, 3 something that is needed is not here.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
NEEDED = (
    *("torch", "triton", "numpy", "safetensors", "msgspec", "yaml"),
    *("typer", "rich", "pandas", "matplotlib", "pytest", "hypothesis", "transformers"),
)
# Folder under --out -> arguments of kvtool. Shapes whose weights fit a card of 40 GB; what matters most comes first.
SUITE = {
    "kernels": "kernels llama-3.1-8b --kv-cache-dtype bf16,fp8",
    "bench": "bench",
    "bench-qwen3-0.6b": "bench qwen3-0.6b --parts latency --input-len 1k --batch-size 1,8,32 --num-iters 3",
    "bench-llama-3.1-8b": "bench llama-3.1-8b --parts latency,prefix --input-len 2k --batch-size 1,32 --num-iters 3",
    "bench-llama-3.1-8b-fp8": (
        "bench llama-3.1-8b --parts latency --input-len 2k --batch-size 1,32 --num-iters 3 --kv-cache-dtype fp8"
    ),
    "bench-mla": "bench deepseek-v2-lite --parts latency --input-len 2k --batch-size 1,32 --num-iters 3",
    "kernels-mla": "kernels deepseek-v3 --context 8k --batch-size 1,32",
    "kernels-block-size": "kernels llama-3.1-8b --context 8k --batch-size 1,32 --block-size 16,32,64,128",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="folder for the documents")
    parser.add_argument("--minutes", type=float, default=8, help="stop after so many (default: 8)")
    options = parser.parse_args()
    out, deadline = options.out.resolve(), time.monotonic() + 60 * options.minutes
    if (lack := what_is_missing()) is not None:
        print(f"make gpu: {lack}", file=sys.stderr)
        sys.exit(3)
    failed = [name for name, command in commands(out).items() if not succeeds(command, deadline)]
    if failed:
        print(f"make gpu: failed: {', '.join(failed)}", file=sys.stderr)
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


def commands(out: Path) -> dict[str, list[str]]:
    """What to run, by name: the tests first."""
    kvtool = [sys.executable, "-c", "from kvtool.cli import main; main()"]
    runs = {name: [*kvtool, *shlex.split(text), "--out", str(out / name)] for name, text in SUITE.items()}
    tests = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu"]
    return {"tests": tests, "env": [*kvtool, "env", "--measure"], **runs}


def succeeds(command: list[str], deadline: float) -> bool:
    """Run it in the checkout, whether or not kvtool is installed; say what runs, and whether time ran out."""
    print("\n$", shlex.join(command), flush=True)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    left_s = deadline - time.monotonic()
    try:
        if left_s > 0:
            environment = os.environ | {"PYTHONPATH": path}
            return subprocess.run(command, cwd=ROOT, env=environment, timeout=left_s).returncode == 0
    except subprocess.TimeoutExpired:
        pass
    print("no time left for this: give more --minutes", flush=True)
    return False


if __name__ == "__main__":
    main()
