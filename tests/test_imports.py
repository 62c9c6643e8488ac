"""Commands that only look things up start fast: they import no tensors, no data frames and no charts."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from kvtool.cli import main
try:
    main()
finally:
    heavy = {"torch", "triton", "pandas", "matplotlib", "transformers"} & set(sys.modules)
    print("imported:", *sorted(heavy), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "--version",
        "bench --help",
        "generate --help",
        "size llama-3.1-8b",
        "size deepseek-v3 --context 8k --gpu h100 --tp 16 --explain",
        "size llama-3.1-8b --json",
        "compare llama-3.1-8b qwen3-8b",
        "advise llama-3.1-8b --gpu h100 --workload multi-turn",
        "models qwen3",
        "gpus h100",
    ],
)
def test_nothing_heavy_is_imported(command: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, *command.split()], capture_output=True, text=True)
    assert done.stderr == "imported:\n"
    assert done.stdout != ""
