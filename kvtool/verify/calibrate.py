"""What a log measured of one GPU, as the calibration that `kvtool size --calibration` takes instead of estimates."""

from __future__ import annotations

from kvtool.results import Calibration
from kvtool.system.errors import KvtoolError
from kvtool.verify.budget import activation_peak, kv_pool, outside_torch
from kvtool.verify.facts import Figure, LogFacts

_TERMS = "weights, activations, what is outside torch, or the pool"


def calibration(facts: LogFacts, log: str) -> Calibration:
    """The measured terms. Raises KvtoolError where the log has none.

    Where weights, activations and the rest are all known, the pool is left out: it follows from them, under other flags
    too. The rest is then what vLLM itself subtracted, so that the four make up its usable memory again.
    """
    weights = facts.first("weights") if facts.engine == "sglang" else facts.largest("weights")
    activation, pool, rest = activation_peak(facts), kv_pool(facts), _rest(facts)
    whole = weights is not None and activation is not None and rest is not None
    version = f" {facts.version}" if facts.version else ""
    measured = Calibration(
        weights_bytes=_whole_bytes(weights),
        activation_bytes=_whole_bytes(activation),
        reserve_bytes=rest,
        kv_pool_bytes=None if whole else _whole_bytes(pool),
        source=f"{facts.engine}{version}, {log}",
    )
    if not measured.measured:
        raise KvtoolError(f"{log} measures nothing to save: none of {_TERMS}")
    return measured


def _rest(facts: LogFacts) -> int | None:
    """What vLLM subtracted beyond weights and activations; where that does not follow, what the log names."""
    usable, weights, activation = facts.last("requested_memory"), facts.largest("weights"), activation_peak(facts)
    pool = kv_pool(facts)
    if usable is not None and weights is not None and activation is not None and pool is not None:
        return max(0, round(usable.value - weights.value - activation.value - pool.value))
    named = [figure for figure in (outside_torch(facts), facts.last("graphs")) if figure is not None]
    return round(sum(figure.value for figure in named)) if len(named) == 2 else None


def _whole_bytes(figure: Figure | None) -> int | None:
    return None if figure is None or figure.value < 0 else round(figure.value)
