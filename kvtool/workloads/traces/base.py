"""What every trace becomes: typed requests, read one at a time; and what a reader of a format is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from kvtool.cache.retention import Retention
from kvtool.system.errors import KvtoolError
from kvtool.workloads.traces.source import TraceSource

MAX_TOKENS = 1 << 40  # of a request, so that sums over a trace fit 64 bits


class TraceRequest(msgspec.Struct, frozen=True, gc=False):
    """One request of a trace.

    `line` counts from 1: the line of the file, or the event or request in files without lines. `block_ids` names the
    pages of the prompt in order, `block_size` tokens each but for the last; where a format has lengths only there are
    none. The same id after the same ids is the same page. `retention`: how important the request is, where it says so.
    """

    line: int
    arrival_s: float
    input_tokens: int
    output_tokens: int
    block_size: int
    block_ids: list[int]
    session: str = ""
    retention: Retention | None = None


@dataclass(frozen=True, slots=True)
class TraceFormat:
    """A format by its name.

    `block_size` is what its publisher cut prompts into, for files that do not say it. `chained` formats give an id to
    a whole prefix, so that an id after another one than before is an error of the trace. `whole_blocks` formats have
    no id for the tokens after the last whole block. With `own_clocks` the times of each session begin at 0.
    `recognises` looks at the first bytes of a file; `read` takes the source and the block size to use where the file
    does not name one.
    """

    name: str
    block_size: int
    chained: bool
    recognises: Callable[[bytes], bool]
    read: Callable[[TraceSource, int], Iterator[TraceRequest]]
    whole_blocks: bool = False
    own_clocks: bool = False


def undecodable(source: TraceSource, line: int, reason: object, unit: str = "line") -> KvtoolError:
    """The error for a line that is not what its format says."""
    return KvtoolError(f"{source.name}, {unit} {line}: {' '.join(str(reason).split())}")


def checked(source: TraceSource, request: TraceRequest, unit: str = "line") -> TraceRequest:
    """The request itself. Raises KvtoolError for lengths below 0 or beyond all sense, and times that are no number."""
    if request.input_tokens < 0 or request.output_tokens < 0:
        tokens = min(request.input_tokens, request.output_tokens)
        raise undecodable(source, request.line, f"a length of {tokens} tokens is negative", unit)
    if max(request.input_tokens, request.output_tokens) > MAX_TOKENS:
        raise undecodable(source, request.line, f"a length of more than {MAX_TOKENS:,} tokens is no request's", unit)
    if not abs(request.arrival_s) < float("inf"):
        raise undecodable(source, request.line, f"a time of {request.arrival_s} is not a number of seconds", unit)
    return request
