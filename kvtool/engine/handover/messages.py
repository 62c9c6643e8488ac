"""What the engines of a disaggregated run and who tells them what to do say to each other, on one machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kvtool.catalog.model import Model
from kvtool.engine.config import EngineConfig
from kvtool.engine.handover.wire import Address
from kvtool.engine.sequence import SamplingParams

PREFILL, DECODE, BOTH = "prefill", "decode", "both"


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """What an instance is told when it starts. Staged pages lie in `folder`, and `token` is what peers know each other
    by. `by_layer`: a layer goes over while the next one is computed."""

    kind: str
    number: int
    tp: int
    model: Model
    config: EngineConfig
    max_positions: int
    num_pages: int
    folder: Path
    token: bytes
    transfer: str
    by_layer: bool
    listen: str

    def __str__(self) -> str:
        kind = "engine" if self.kind == BOTH else f"{self.kind} engine"
        return f"{kind} {self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request. `first_page`: the pages before it are there already where it goes, at `address`."""

    request: int
    prompt: list[int]
    params: SamplingParams
    arrival_s: float
    first_page: int = 0
    path: Path | None = None
    address: Address | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lacks:
    """Where a decode engine takes a request's pages, and from which on it has none of them."""

    request: int
    first_page: int
    path: Path
    address: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Came:
    """Tokens of a request, and when; `at_s` and what follows tell of a hand-over that begins with them."""

    request: int
    tokens: list[int]
    times_s: list[float]
    is_finished: bool
    cached_tokens: int = 0
    export_start_s: float | None = None
    pages: int = 0
    bytes: int = 0
    descriptors: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """All pages of a request are there."""

    request: int
    at_s: float


@dataclass(slots=True)
class Served:
    """A request and what became of it, on one clock of the machine."""

    ask: Ask
    tokens: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    cached_tokens: int = 0
    spared_pages: int = 0
    sent: Came | None = None
    arrived_s: float | None = None
