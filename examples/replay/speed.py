"""How fast a replay is, next to kvcache-simulator (KVCache.AI, PyPI) with its C++ core where that is installed.

python examples/replay/speed.py TRACE            15 capacities x (lru, fifo, optimal), and the whole curve of LRU
python examples/replay/speed.py TRACE PYTHON     the same in turns with kvcache-simulator, installed for PYTHON
python examples/replay/speed.py --blocks 10000000   LRU over a made trace of so many blocks, and the memory that it took
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from kvtool.replay.accesses import read_accesses
from kvtool.replay.curves import Curve
from kvtool.replay.loops.fastest import core
from kvtool.replay.sweep import Replays, sweep
from kvtool.replay.workers import Workers
from kvtool.workloads.making.make import make_trace
from kvtool.workloads.making.options import Making
from kvtool.workloads.traces import open_trace
from kvtool.workloads.traces.write import write_trace

CAPACITIES = (*(128 << step for step in range(11)), 1000, 10_000, 50_000, 100_000)
POLICIES = ("lru", "fifo", "optimal")
TURNS = 5
BLOCK_GIB = 0.15625  # of 512 tokens of Llama-3.1-70B in bf16, which the simulator takes budgets of
SIMULATOR_MODEL = "llama-3.1-70b"
TIMED_CORE = """
import sys, time
from kvcache_sim import cli, cpp_backend
started, popen = [], cpp_backend.subprocess.Popen
def timed(*args, **kwargs):
    started.append(time.perf_counter())
    return popen(*args, **kwargs)
cpp_backend.subprocess.Popen = timed
loads = cpp_backend.json.loads
def stop(text):
    print(time.perf_counter() - started[-1], file=sys.stderr)
    return loads(text)
cpp_backend.json = type("json", (), {"loads": staticmethod(stop)})
sys.exit(cli.main())
"""


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def own_process(trace: str) -> None:
    capacities = ",".join(map(str, CAPACITIES))
    subprocess.run([sys.executable, "-m", "kvtool", "replay", trace, "--policy", ",".join(POLICIES), "--capacity",
                    capacities, "--last", "0.5", "--json"], stdout=subprocess.DEVNULL, check=True)  # fmt: skip


def simulator(python: str, trace: str) -> tuple[float, float]:
    """Seconds of its process, and of its core alone."""
    budgets = ",".join(str(count * BLOCK_GIB) for count in CAPACITIES)
    command = [python, "-c", TIMED_CORE, "run", "--trace", trace, "--model", SIMULATOR_MODEL, "--block-size", "512"]
    command += ["--budgets-gib", budgets, "--policies", ",".join(POLICIES), "--no-progress", "--format", "json"]
    start = time.perf_counter()
    told = subprocess.run([*command, "-o", "/dev/null"], stderr=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - start, float(told.stderr.split()[-1])


def compare(trace: str, python: str | None) -> None:
    """Whole processes in turns, after one of each; then the loops alone, the trace being loaded."""
    own_s: list[float] = []
    theirs: list[tuple[float, float]] = []
    for _ in range(TURNS + 1):
        own_s.append(seconds(lambda: own_process(trace)))
        theirs += [] if python is None else [simulator(python, trace)]
    del own_s[0], theirs[:1]
    loops = core()
    accesses = read_accesses(open_trace(Path(trace)), loops)
    points = tuple((policy, capacity) for policy in POLICIES for capacity in CAPACITIES)
    alone_s = [seconds(lambda: sweep(loops, [Replays(accesses, None, points)], Workers(jobs=1))) for _ in range(TURNS)]
    curve_s = [seconds(lambda: Curve(loops, accesses, "lru", sizes=None, first=0)) for _ in range(TURNS)]
    print(f"{len(CAPACITIES)} capacities x {', '.join(POLICIES)}, {len(accesses.nodes):,} blocks, medians of {TURNS}")
    print(f"whole process       kvtool {median(own_s):.2f} s" + _beside([whole_s for whole_s, _ in theirs], own_s))
    print(f"the replays alone   kvtool {median(alone_s):.3f} s" + _beside([core_s for _, core_s in theirs], alone_s))
    print(f"LRU, every capacity kvtool {median(curve_s):.3f} s")


def _beside(theirs_s: list[float], own_s: list[float]) -> str:
    if not theirs_s:
        return ""
    return f", kvcache-simulator {median(theirs_s):.3f} s: x{median(theirs_s) / median(own_s):.1f}"


def stream(blocks: int) -> None:
    """Agents whose prompts have that many blocks together, as a file, read and replayed once."""
    loops = core()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "agents.jsonl.gz"
        a_session = 16_000  # blocks of all prompts of a trajectory of 32k tokens: 60 turns of 17,183, in blocks of 64
        write_trace(path, make_trace(Making(kind="agents", num_sessions=max(1, blocks // a_session), max_len=32768)))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        accesses = read_accesses(open_trace(path), loops)
        read_s = time.perf_counter() - start
        capacity = max(1, len(accesses.parents) // 10)
        lru_s = seconds(lambda: loops.leaves("lru", capacity, accesses.walk()))
        curve_s = seconds(lambda: Curve(loops, accesses, "lru", sizes=None, first=0))
    took = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    total = len(accesses.nodes)
    print(f"{total:,} blocks, {len(accesses.parents):,} unique: read in {read_s:.1f} s")
    print(f"lru at {capacity:,} blocks {lru_s:.2f} s: {total / lru_s / 1e6:.1f} million blocks a second")
    print(f"lru at every capacity {curve_s:.2f} s: {total / curve_s / 1e6:.1f} million blocks a second")
    print(f"memory {took / 1024:,.0f} MiB at most, {before / 1024:,.0f} of them before the trace was read")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--blocks"]:
        stream(int(sys.argv[2]))
    elif len(sys.argv) > 1:
        compare(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
    else:
        sys.exit(__doc__)
