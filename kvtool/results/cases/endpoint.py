"""What a server that already runs adds to its case: hits as it counts them, what failed, and what stands beside it."""

from __future__ import annotations

import msgspec

from kvtool.results.document import Struct


class Failure(Struct, frozen=True, kw_only=True):
    """A request without a whole answer: when it was sent, how long it took to fail, events with tokens until then."""

    iteration: int
    kind: str
    text: str
    arrival_s: float
    after_s: float
    events: int


class Endpoint(Struct, frozen=True, kw_only=True):
    """Counts are of all measured iterations of a case.

    `server` is its engine with the version, `url_model` the name that it serves. Hits are those of `hit_source`
    (usage | metrics | none: they are not known, and 0); the requested rate is rounded down to whole blocks of
    `block_tokens`, which makes `hit_rate_rounded` and `hit_tokens_expected` in a cache that evicts nothing: found
    exactly so where `hits_exact`. `usage_hit_tokens` and `metrics_hit_tokens` are what each says, None where it says
    nothing, or where others used the server too. `preemptions` are the server's own. `cache_state`: reset | fresh |
    unknown; `salt` parts the prompts of a run from any other's. `tokens_per_event`: output tokens over events that
    brought any. `client_overhead_ms` is the median time of a request of this client to a server that answers at once.
    Floor and our own engine: None where not asked for.
    """

    url_model: str
    server: str
    route: str
    scenario: str
    requests: int
    errors: dict[str, int]
    cache_state: str
    hit_tokens: int
    prompt_tokens: int
    hit_rate: float | None
    hit_source: str
    hit_rate_requested: float
    hit_rate_rounded: float
    hit_tokens_expected: int
    hits_exact: bool
    block_tokens: int
    usage_hit_tokens: int | None
    metrics_hit_tokens: int | None
    preemptions: int | None
    output_pinned: bool
    tokens_per_event: float | None
    requests_per_s: float | None
    output_tokens_per_s: float | None
    client_overhead_ms: float | None
    floor_tpot_ms: float | None
    own_ttft_ms: float | None
    own_tpot_ms: float | None
    goodput_ratio: float | None
    salt: int
    failures: list[Failure] = msgspec.field(default_factory=list)
