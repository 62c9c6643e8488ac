"""What `kvtool trace` found in a trace."""

from __future__ import annotations

from kvtool.results.document import Struct


class TraceFinding(Struct, frozen=True, kw_only=True):
    """One thing that is wrong, or that costs hits. `line` is None for what is true of the whole trace; `tokens_lost`
    and `ms_lost` are None where they do not apply.
    """

    kind: str
    line: int | None
    detail: str
    tokens_lost: int | None = None
    ms_lost: float | None = None
    remedy: str = ""


class TraceSummary(Struct, frozen=True, kw_only=True):
    """The trace that was looked at."""

    name: str
    format: str
    sha256: str
    requests: int
    block_size: int
    total_blocks: int
    input_tokens: int
    output_tokens: int
    duration_s: float


class TraceDocument(Struct, frozen=True, kw_only=True):
    schema: str = "kvtool.trace/1"
    trace: TraceSummary
    findings: list[TraceFinding]
    assumptions: list[str]
