"""What `kvtool trace` found in a trace."""

from __future__ import annotations

import msgspec

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
    """`missed_tokens` says where the tokens of all prompts went (hit, evicted, changed_prefix, block_tail, never_seen),
    and is empty but for `trace misses`; `statistics` are means over sessions of a trace that kvtool wrote.
    """

    schema: str = "kvtool.trace/1"
    trace: TraceSummary
    findings: list[TraceFinding]
    missed_tokens: dict[str, int] = msgspec.field(default_factory=dict)
    statistics: dict[str, float] = msgspec.field(default_factory=dict)
    assumptions: list[str]
