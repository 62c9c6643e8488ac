"""A replay beside the run that it stands for: hits must be equal, and the median first token near.

python examples/replay/against_bench.py            16 questions behind 3 prefixes, in turns with single steps, 80 s
python examples/replay/against_bench.py FOLDER     the same; trace and documents stay in FOLDER

The replay gets single steps as its profile, and never sees how long the trace took. A machine's speed drifts, so steps
and the trace take turns, and turns of which others disturb any part are left out. The replay of a turn gets the steps
before and after it. The ratio is of the medians of turns, replayed over served, its interval of resampled turns.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import msgspec

from kvtool.machine.stats import paired_ratio_of_medians
from kvtool.results import ReplayDocument, ReplayTiers, encode
from kvtool.workloads.making.make import make_trace
from kvtool.workloads.making.options import Making
from kvtool.workloads.traces.write import write_trace

MODEL, CLOSE = "smollm2-135m", 0.15
QUESTIONS = Making(
    kind="shared-prefix", num_sessions=16, block_size=16, prefixes=3, prefix_len=192, input_len=24, output_len=6,
    request_rate=2.5,
)  # fmt: skip


def replayed(trace: Path, profile: Path) -> ReplayTiers:
    """What the replay says of the clock."""
    command = [sys.executable, "-m", "kvtool", "replay", str(trace), MODEL, "--tiers", "none", "--profile"]
    done = subprocess.run([*command, str(profile), "--json"], stdout=subprocess.PIPE, check=True)
    (clock,) = msgspec.json.decode(done.stdout, type=ReplayDocument).tiers
    return clock


def compare(folder: Path) -> bool:
    """Whether the replay agrees with what the engine does here."""
    from served import Bench

    trace = folder / "trace.jsonl"
    write_trace(trace, make_trace(QUESTIONS))
    bench = Bench(MODEL, trace, QUESTIONS)
    turns = bench.turns()
    if len(turns) < 2:
        sys.exit("others kept this machine busy: a replay can be held to a run on an idle one")
    clocks = []
    for number, turn in enumerate(turns):
        profile = folder / f"steps-{number}.json"
        profile.write_bytes(encode(bench.document(turn.steps)))
        clocks.append(replayed(trace, profile))
    return agrees([turn.hit_tokens for turn in turns], [turn.ttft_s for turn in turns], clocks)


def agrees(hits: Sequence[int], ttft_s: Sequence[Sequence[float]], clocks: Sequence[ReplayTiers]) -> bool:
    """Whether hits are equal in every turn, and the ratio of medians is close to 1."""
    served_ms = [1e3 * median(turn) for turn in ttft_s]
    replayed_ms = [clock.ttft_ms.p50 for clock in clocks]
    for found, ms, clock in zip(hits, served_ms, clocks, strict=True):
        print(
            f"hits engine {found:,}, replay {clock.hit_tokens:,}; TTFT p50 engine {ms:.1f} ms, replay "
            f"{clock.ttft_ms.p50:.1f}"
        )
    hits_equal = all(found == clock.hit_tokens for found, clock in zip(hits, clocks, strict=True))
    ratio = paired_ratio_of_medians(served_ms, replayed_ms)
    print(
        f"over {len(clocks)} turns: hits {'equal' if hits_equal else 'differ'}; TTFT p50 "
        f"engine {median(served_ms):.1f} "
        f"ms, replay {median(replayed_ms):.1f}: {ratio.value - 1:+.1%} ({ratio.low - 1:+.1%} to {ratio.high - 1:+.1%})"
    )
    return hits_equal and abs(ratio.value - 1) <= CLOSE


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
        sys.exit(not compare(Path(sys.argv[1])))
    with tempfile.TemporaryDirectory() as made:
        sys.exit(not compare(Path(made)))
