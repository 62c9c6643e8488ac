"""What is odd about a trace: chains that break, times that fall, block counts that lengths do not bear.

None of it keeps a trace from being replayed, and all of it changes what a replay says.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvtool.results import TraceDocument, TraceFinding
from kvtool.workloads.traces.base import TraceFormat, TraceRequest
from kvtool.workloads.traces.summary import Sums
from kvtool.workloads.traces.traces import Trace

ROOT = -1  # stands before the first block of a prompt
REMEDIES = {
    "chain": "each prefix is replayed as a block of its own; hash a block together with all before it",
    "time_reversed": "the log may have the newest first: --sort-by-time",
    "time_unsorted": "requests are replayed in the order of lines: --sort-by-time",
    "block_count": "say the block size (--block-size), or mend the log: a replay takes the blocks that are there",
    "lengths_only": "lengths alone size a cache (kvtool size --lengths); a replay needs the blocks of prompts",
    "no_requests": "",
}

WHAT_AN_ID_IS = {True: "whole prefixes", False: "the tokens of a block alone, so that chains are not checked"}


def check_trace(trace: Trace) -> TraceDocument:
    """Reads the trace whole. Raises KvtoolError naming the line that cannot be decoded."""
    check = _Check(trace.format)
    findings = [finding for request in trace for finding in check.see(request)]
    sums = check.sums
    if 2 * check.falls > sums.requests:
        kept = [finding for finding in findings if finding.kind != "time_unsorted"]
        detail = f"times fall {check.falls:,} times in {sums.requests:,} requests"
        findings = [_finding("time_reversed", None, detail), *kept]
    if not sums.requests:
        findings.append(_finding("no_requests", None, "the trace has no requests"))
    elif not sums.blocks:
        findings.append(_finding("lengths_only", None, f"{trace.format.name} traces do not say what prompts hold"))
    return TraceDocument(
        trace=sums.summary(trace.name, trace.format.name, trace.sha256),
        findings=findings,
        assumptions=[f"block ids of {trace.format.name} traces stand for {WHAT_AN_ID_IS[trace.format.chained]}"]
        if sums.blocks
        else [],
    )


class _Check:
    """What has been seen of a trace so far. `before` says what stood before each id when it was first seen."""

    def __init__(self, form: TraceFormat) -> None:
        self._format = form
        self._before: dict[int, int] = {}
        self._previous_s = float("-inf")
        self._session = ""
        self.sums, self.falls = Sums(), 0

    def see(self, request: TraceRequest) -> Iterator[TraceFinding]:
        """What is odd about the next request."""
        self.sums.add(request)
        session = request.session.partition("/")[0] if self._format.own_clocks else ""
        if request.arrival_s < self._previous_s and session == self._session:
            self.falls += 1
            detail = f"its time is {self._previous_s - request.arrival_s:g} s before that of the request before it"
            yield _finding("time_unsorted", request.line, detail)
        self._previous_s, self._session = request.arrival_s, session
        if request.block_ids:
            yield from self._block_count(request)
        if self._format.chained:
            yield from self._chain(request)

    def _chain(self, request: TraceRequest) -> Iterator[TraceFinding]:
        """Ids that stand behind another id than before."""
        before, broken = ROOT, []
        for block in request.block_ids:
            if self._before.setdefault(block, before) != before:
                broken.append(block)
            before = block
        if broken:
            others = f" ({len(broken):,} such blocks in the request)" if len(broken) > 1 else ""
            yield _finding("chain", request.line, f"block {broken[0]} stands behind another block than before{others}")

    def _block_count(self, request: TraceRequest) -> Iterator[TraceFinding]:
        whole, rest = divmod(request.input_tokens, request.block_size)
        expected = whole + (rest > 0 and not self._format.whole_blocks)
        if expected != len(request.block_ids):
            yield _finding(
                "block_count",
                request.line,
                f"{request.input_tokens:,} tokens in blocks of {request.block_size} are {expected:,} blocks, and "
                f"{len(request.block_ids):,} are there",
            )


def _finding(kind: str, line: int | None, detail: str) -> TraceFinding:
    return TraceFinding(kind=kind, line=line, detail=detail, remedy=REMEDIES[kind])
