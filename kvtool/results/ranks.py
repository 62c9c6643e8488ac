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
