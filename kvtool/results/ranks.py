"""What each rank of a run held, sent and waited for."""

from __future__ import annotations

from kvtool.results.document import Struct


class RankUse(Struct, frozen=True, kw_only=True):
    """Of one rank. Predicted bytes are those of the model's shape and of the specs of its cache. `sent_bytes`: payload
    by the collectives' formulas; `socket_bytes`: what the kernel counted, None where it does not tell. `exposed_s`: it
    could do nothing but wait for others."""

    rank: int
    weights_predicted_bytes: int | None
    weights_allocated_bytes: int
    kv_predicted_bytes: int
    kv_allocated_bytes: int
    sent_bytes: int
    socket_bytes: int | None
    exposed_s: float


class RankPhase(Struct, frozen=True, kw_only=True):
    """A prefill of the batch, or one decode step: medians over iterations, of the first rank.

    `exposed_ms` it waits for others, `compute_ms` is the rest of `wall_ms`. `alone_ms`: the same exchanges with nothing
    computed between them; what of that is not exposed is hidden behind computing. Bytes are sent by all ranks, once:
    by the formula, by what was handed to the exchanges, and by the kernel's count of sockets (None: it does not tell).
    """

    wall_ms: float
    compute_ms: float
    exposed_ms: float
    alone_ms: float
    hidden_ms: float
    formula_bytes: int
    sent_bytes: int
    socket_bytes: int | None
    goes_round: str | None


class RankRun(Struct, frozen=True, kw_only=True):
    """A batch on one layout, and what every rank held. `goes_round` of a phase is pass-kv or pass-q, None where no
    tokens are shared."""

    tp: int
    cp: int
    dcp: int
    ring: str
    prefill: RankPhase
    decode: RankPhase | None
    ranks: list[RankUse]
