"""A trace of block ids: where the tokens of its prompts went, as far as ids and sessions tell."""

from __future__ import annotations

from collections.abc import Iterator

from kvtool.replay.accesses import read_accesses
from kvtool.replay.curves import Curve
from kvtool.replay.loops.core import Core
from kvtool.replay.misses.losses import Losses
from kvtool.workloads.traces import Trace, TraceRequest


def trace_misses(trace: Trace, losses: Losses, core: Core, *, capacity: int | None, least: int) -> None:
    """Adds the losses of every request under LRU with room for `capacity` blocks (None: no limit).

    evicted: was there, and had to go. changed_prefix: a block with the same id was seen behind other blocks, or the
    session's prompt before does not go on in this one. block_tail: the end of the session's prompt before, which filled
    no block. Raises KvtoolError for a trace that cannot be decoded or has no blocks.
    """
    accesses = read_accesses(trace, core)
    curve = Curve(core, accesses, "lru", sizes=None, first=0)
    seen = accesses.tokens_of(curve.request_hits(None)).tolist()
    hits = accesses.tokens_of(curve.request_hits(capacity)).tolist()
    room = f"at {curve.full_capacity:,} blocks nothing would be"
    changes = _Changes()
    for request, content, hit in zip(trace, seen, hits, strict=True):
        evicted = content - hit
        changed, tail = changes.see(request, content)
        for kind, tokens, detail in (
            ("evicted", evicted, f"{evicted:,} tokens were cached and evicted again; {room}"),
            ("changed_prefix", changed, f"{changed:,} tokens were seen behind another prefix"),
            ("block_tail", tail, f"{tail:,} tokens of the prompt before filled no block"),
        ):
            if tokens >= (1 if kind == "block_tail" else least):
                losses.add(kind, "", request.line, detail, tokens, (request.input_tokens, hit))
        losses.count(request.input_tokens, hit=hit, evicted=evicted, changed_prefix=changed, block_tail=tail)


class _Changes:
    """Ids that were seen, and the last prompt of each session."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._before: dict[str, TraceRequest] = {}

    def see(self, request: TraceRequest, content: int) -> tuple[int, int]:
        """Tokens behind a changed prefix, and of a tail, among those after the first `content` of the prompt."""
        before = self._before.get(request.session) if request.session else None
        elsewhere = sum(self._lengths(request, content))
        tail = 0
        if before is not None:
            common = _common_blocks(before, request)
            whole = before.input_tokens // request.block_size
            if common >= whole:
                tail = max(0, min(before.input_tokens, request.input_tokens) - max(content, whole * request.block_size))
            elif not elsewhere:  # ids of whole prefixes do not tell what stands behind a change
                kept = min(whole * request.block_size, request.input_tokens)
                elsewhere = max(0, kept - max(content, common * request.block_size))
        self._seen.update(request.block_ids)
        if request.session:
            self._before[request.session] = request
        return min(elsewhere, request.input_tokens - content - tail), tail

    def _lengths(self, request: TraceRequest, content: int) -> Iterator[int]:
        """Tokens of each block behind `content` whose id was seen before."""
        first = -(-content // request.block_size)
        for place, block in enumerate(request.block_ids[first:], first):
            if block in self._seen:
                yield max(0, min(request.block_size, request.input_tokens - place * request.block_size))


def _common_blocks(before: TraceRequest, request: TraceRequest) -> int:
    pairs = zip(before.block_ids, request.block_ids, strict=False)
    return next(
        (place for place, (a, b) in enumerate(pairs) if a != b), min(map(len, (before.block_ids, request.block_ids)))
    )
