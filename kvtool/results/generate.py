"""What `kvtool generate` made, and how long it took."""

from __future__ import annotations

from typing import Any

import msgspec

from kvtool.results.cases.ranks import Handover, RankUse
from kvtool.results.cases.workload import TierUse
from kvtool.results.document import Struct


class GeneratedSequence(Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    output_ids: list[int]
    text: str | None
    ttft_ms: float
    tpot_ms: float | None
    pages: int
    cached_tokens: int = 0


class CachedPages(Struct, frozen=True, kw_only=True):
    """A run of pages in the cache when all was done: the tokens in it from `first_token` on, and the `prompts` (counted
    from 0) that begin with all up to its end. `depth` counts the runs before it; a run follows the one it continues."""

    depth: int
    first_token: int
    tokens: int
    pages: list[int]
    prompts: list[int]


class GenerateDocument(Struct, frozen=True, kw_only=True):
    schema: str = "kvtool.generate/1"
    model: str
    inputs: dict[str, str | int | float | bool | None]
    environment: dict[str, Any]
    assumptions: list[str]
    sequences: list[GeneratedSequence]
    cache: list[CachedPages] = msgspec.field(default_factory=list)
    tiers: list[TierUse] = msgspec.field(default_factory=list)
    ranks: list[RankUse] = msgspec.field(default_factory=list)
    handover: Handover | None = None
