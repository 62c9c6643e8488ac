"""Sessions as a cluster sees them: turn after turn, each with what storage has of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvtool.system.errors import KvtoolError
from kvtool.workloads.traces import Trace, TraceRequest


@dataclass(frozen=True, slots=True)
class Turn:
    """`cached_tokens` of the prompt are in storage; it begins `after_s` after the answer before it."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int
    after_s: float

    @property
    def tokens(self) -> int:
        """Of the prompt and the answer."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Session:
    """Turns in their order; the first begins at `start_s`."""

    start_s: float
    turns: tuple[Turn, ...]


def sessions_of(trace: Trace) -> list[Session]:
    """The sessions of a trace, by their start. Storage keeps prompts and answers in whole blocks, of all sessions, for
    ever; at least one token of a prompt is computed. Raises KvtoolError for a trace without blocks.
    """
    seen: set[int] = set()
    open_sessions: dict[str, list[TraceRequest]] = {}
    turns: dict[str, list[Turn]] = {}
    for request in trace:
        if not request.block_ids:
            raise KvtoolError(f"{trace.name}, line {request.line}: --cluster needs the blocks of prompts")
        name = request.session or f"line {request.line}"
        before = open_sessions.setdefault(name, [])
        turns.setdefault(name, []).append(_turn(request, before[-1] if before else None, seen))
        before.append(request)
        seen.update(request.block_ids)
    starts = {name: max(0.0, own[0].arrival_s) for name, own in open_sessions.items()}
    return [Session(starts[name], tuple(turns[name])) for name in sorted(turns, key=lambda name: starts[name])]


def _turn(request: TraceRequest, before: TraceRequest | None, seen: set[int]) -> Turn:
    size = request.block_size
    hit = next((place for place, block in enumerate(request.block_ids) if block not in seen), len(request.block_ids))
    cached, after_s = hit * size, 0.0
    if before is not None:
        after_s = max(0.0, request.arrival_s - before.arrival_s)
        whole, end = before.input_tokens // size, before.input_tokens + before.output_tokens
        goes_on = request.block_ids[:whole] == before.block_ids[:whole] and request.input_tokens >= end
        cached = max(cached, end // size * size if goes_on else 0)
    return Turn(request.input_tokens, request.output_tokens, min(cached, max(0, request.input_tokens - 1)), after_s)


def started_at(sessions: Sequence[Session], starts_s: Sequence[float]) -> list[Session]:
    """The same sessions with other starts."""
    return [replace(one, start_s=start_s) for one, start_s in zip(sessions, starts_s, strict=True)]
