"""A replay beside the run that it stands for: hits must be equal, and the median first token near.

python examples/replay/against_bench.py            16 questions behind 3 prefixes, in a minute or two
python examples/replay/against_bench.py FOLDER     the same; trace and documents stay in FOLDER

The engine serves a made trace and, in the same run, single steps; the replay gets these steps as its profile, and
never sees how long the trace took.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MODEL, BLOCK_SIZE, REQUESTS = "smollm2-135m", "16", "16"
MAKE = ["--num-sessions", REQUESTS, "--block-size", BLOCK_SIZE, "--prefixes", "3", "--prefix-len", "192",
        "--input-len", "24", "--output-len", "6", "--request-rate", "2.5"]  # fmt: skip
STEPS = ["--input-len", "8,32,320", "--batch-size", "1,2", "--output-len", "6"]
CLOSE = 0.15


def kvtool(*arguments: str) -> Any:
    """The document of a command."""
    told = subprocess.run([sys.executable, "-m", "kvtool", *arguments, "--json"], stdout=subprocess.PIPE, check=True)
    return json.loads(told.stdout)


def measured(folder: Path) -> tuple[int, float]:
    """What the engine did: tokens that hit, and the median first token in milliseconds."""
    trace, steps = str(folder / "trace.jsonl"), folder / "bench.json"
    kvtool("trace", "make", "shared-prefix", trace, *MAKE)
    run = kvtool("bench", MODEL, "--parts", "latency,workload", "--workload", trace, "--num-prompts", REQUESTS,
                 "--block-size", BLOCK_SIZE, "--num-iters", "1", *STEPS)  # fmt: skip
    steps.write_text(json.dumps(run))
    (case,) = [case for case in run["cases"] if case["part"] == "workload"]
    assert case["inputs"]["num_prompts"] == int(REQUESTS), case["workload"]["scale"]
    return case["workload"]["hit_tokens"], case["metrics"]["ttft_ms"]["p50"]


def replayed(folder: Path) -> tuple[int, dict[str, Any]]:
    """What the replay says that it did: tokens that hit, and the clock's figures."""
    document = kvtool("replay", str(folder / "trace.jsonl"), MODEL, "--tiers", "none", "--profile",
                      str(folder / "bench.json"))  # fmt: skip
    (clock,) = document["tiers"]
    return clock["hit_tokens"], clock


def compare(folder: Path) -> bool:
    hits, ttft_ms = measured(folder)
    own_hits, clock = replayed(folder)
    own_ms, (low, high) = clock["ttft_ms"]["p50"], clock["ttft_p50_range_ms"]
    print(f"hits     engine {hits:,} tokens, replay {own_hits:,}")
    print(
        f"TTFT p50 engine {ttft_ms:.1f} ms, replay {own_ms:.1f} ({low:.1f} to {high:.1f}): {own_ms / ttft_ms - 1:+.1%}"
    )
    return hits == own_hits and abs(own_ms / ttft_ms - 1) <= CLOSE


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
        sys.exit(not compare(Path(sys.argv[1])))
    with tempfile.TemporaryDirectory() as made:
        sys.exit(not compare(Path(made)))
