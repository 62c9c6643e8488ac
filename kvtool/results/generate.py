"""What `kvtool generate` made, and how long it took."""

from __future__ import annotations

from typing import Any

import msgspec

from kvtool.results.document import Struct
from kvtool.results.tiers import TierUse


class GeneratedSequence(Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    output_ids: list[int]
    text: str | None
    ttft_ms: float
    tpot_ms: float | None
    pages: int


class GenerateDocument(Struct, frozen=True, kw_only=True):
    schema: str = "kvtool.generate/1"
    model: str
    inputs: dict[str, str | int | float | bool | None]
    environment: dict[str, Any]
    assumptions: list[str]
    sequences: list[GeneratedSequence]
    tiers: list[TierUse] = msgspec.field(default_factory=list)
