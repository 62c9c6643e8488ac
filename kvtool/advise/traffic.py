"""Traffic as the questions see it: the mean request, what a prefix cache finds of it, and how much that must hold.

A named workload is the scenario that `kvtool bench --workload` runs; a trace is replayed at every capacity of LRU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from kvtool.replay.accesses import read_accesses
from kvtool.replay.curves import Curve
from kvtool.replay.loops.fastest import core
from kvtool.system.errors import KvtoolError
from kvtool.workloads.scenarios.base import Plan, Shape
from kvtool.workloads.scenarios.scenarios import is_trace, plan_of, require_scenario, title
from kvtool.workloads.traces import open_trace

FEW, MORE = 16, 32  # prompts that are made in full: all sums are linear in their number beyond
LONG_TOKENS = 1 << 16  # of prompts so long that a quarter as many are made


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Tokens of the mean request. `reused_tokens`: what a cache must hold so that all `hit_tokens` are found; `curve`
    is a trace's, in blocks of `block_size` tokens.
    """

    source: str
    requests: int
    input_tokens: int
    output_tokens: int
    hit_tokens: int
    reused_tokens: int
    block_size: int
    curve: Curve | None = None
    trace: Path | None = None

    def __post_init__(self) -> None:
        if self.input_tokens < 1 or self.output_tokens < 1:
            raise KvtoolError(f"{self.source} has requests without a prompt or without an answer: nothing to advise on")

    @property
    def longest_tokens(self) -> int:
        """Prompt and answer together."""
        return self.input_tokens + self.output_tokens

    @property
    def steps(self) -> int:
        """Decode steps: the first token comes out of the prefill."""
        return self.output_tokens - 1

    @property
    def decoded_context(self) -> int:
        """Tokens that the mean decode step reads."""
        return self.input_tokens + (self.output_tokens + 1) // 2

    def hits_in(self, tokens: int) -> int:
        """Tokens of the mean request that a cache of so many finds: by LRU's curve of a trace; of a scenario in the
        proportion in which its sessions stay.
        """
        if tokens >= self.reused_tokens:
            return self.hit_tokens
        if self.curve is not None:
            return self.curve.at(max(0, tokens) // self.block_size).hit_tokens // self.requests
        return self.hit_tokens * max(0, tokens) // self.reused_tokens


def traffic_of(name: str, shape: Shape, *, trace_format: str | None = None) -> Traffic:
    """Of a scenario's name or a trace's path. Raises KvtoolError."""
    require_scenario(name)
    return trace_traffic(Path(name), trace_format) if is_trace(name) else scenario_traffic(name, shape)


def trace_traffic(path: Path, trace_format: str | None = None) -> Traffic:
    """Raises KvtoolError for a trace that cannot be decoded, or without blocks."""
    trace, loops = open_trace(path, form=trace_format), core()
    accesses = read_accesses(trace, loops)
    curve = Curve(loops, accesses, "lru", sizes=None, first=0)
    outputs = fmean(request.output_tokens for request in trace)
    return Traffic(
        source=f"{accesses.num_requests:,} requests of {path.name}",
        requests=accesses.num_requests,
        input_tokens=round(float(accesses.input_tokens.mean())),
        output_tokens=round(outputs),
        hit_tokens=curve.at(None).hit_tokens // accesses.num_requests,
        reused_tokens=curve.full_capacity * accesses.block_size,
        block_size=accesses.block_size,
        curve=curve,
        trace=path,
    )


@dataclass(frozen=True, slots=True)
class _Sums:
    """Of a plan, in tokens; `requests` counts every answer."""

    requests: int
    prompts: int
    outputs: int
    cached: int
    reused: int

    def grown(self, fewer: _Sums, times: float) -> _Sums:
        """So many times further on than from `fewer` to here."""
        pairs = ((getattr(self, name), getattr(fewer, name)) for name in _Sums.__slots__)
        return _Sums(*(round(more + times * (more - less)) for more, less in pairs))


def scenario_traffic(name: str, shape: Shape) -> Traffic:
    """Raises KvtoolError for prompts that the scenario cannot make."""
    count = shape.num_prompts
    least, most = (FEW, MORE) if shape.input_len <= LONG_TOKENS else (FEW // 4, MORE // 4)
    if count <= most:
        sums = _sums(plan_of(name, shape))
    else:
        few, more = (_sums(plan_of(name, replace(shape, num_prompts=number))) for number in (least, most))
        sums = more.grown(few, (count - most) / (most - least))
    return Traffic(
        source=f"{sums.requests:,} requests of {title(name)}",
        requests=sums.requests,
        input_tokens=round(sums.prompts / sums.requests),
        output_tokens=round(sums.outputs / sums.requests),
        hit_tokens=sums.cached // sums.requests,
        reused_tokens=sums.reused,
        block_size=shape.block_size,
    )


def _sums(plan: Plan) -> _Sums:
    return _Sums(
        requests=sum(turn.answers for turn in plan.turns),
        prompts=plan.prompt_tokens,
        outputs=sum(turn.output_len * turn.answers for turn in plan.turns),
        cached=plan.cached_tokens,
        reused=reused_tokens(plan),
    )


def reused_tokens(plan: Plan) -> int:
    """Distinct tokens that are found again: what was primed, and of each session the longest prefix that one of its
    requests finds, less what its first one found.
    """
    found: dict[int, int] = {}
    roots: list[int] = []
    for index, turn in enumerate(plan.turns):
        root = index if turn.after is None else roots[turn.after]
        roots.append(root)
        forked = turn.prompt_tokens - 1 if turn.answers > 1 else 0
        found[root] = max(found.get(root, 0), turn.cached_tokens, forked)
    own = sum(longest - plan.turns[root].cached_tokens for root, longest in found.items())
    return sum(len(ids) - 1 for ids in plan.priming) + own
