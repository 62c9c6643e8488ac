"""What each rank of a run held, sent and waited for."""

from __future__ import annotations

from kvtool.results.document import Struct
from kvtool.results.summary import Summary


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
    dp: int = 1
    ring: str
    prefill: RankPhase
    decode: RankPhase | None
    ranks: list[RankUse]


class Handover(Struct, frozen=True, kw_only=True):
    """Pages that went from engines that prefill to those that decode. Spared pages were there already.

    `transfer_ms` is from the first byte copied to the last that arrived, `exposed_ms` what of it was after the prompt
    was computed. The fit: seconds = alpha * descriptors + bytes / bandwidth; None where the transfers do not tell.
    """

    prefill: int
    decode: int
    prefill_tp: int
    decode_tp: int
    transfer: str
    by: str
    requests: int
    pages_sent: int
    pages_spared: int
    bytes: int
    descriptors: int
    transfer_ms: Summary | None
    exposed_ms: Summary | None
    alpha_us: float | None
    gbps: float | None


class Disaggregated(Struct, frozen=True, kw_only=True):
    """One way of serving: `aggregated` engines that do both, or prefill and decode apart, with what was handed over."""

    mode: str
    engines: int
    goodput_ratio: float | None
    handover: Handover | None
