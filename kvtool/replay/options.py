"""What to replay, and what of it says nothing without a model or a card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvtool.catalog.gpus import Gpu
from kvtool.catalog.model import Model
from kvtool.replay.capacity import Capacity, in_unit
from kvtool.replay.cluster.cluster import ClusterOptions
from kvtool.replay.policies import check_policies
from kvtool.replay.tiers.fits import has_steps
from kvtool.replay.tiers.options import TierOptions
from kvtool.replay.tiers.profile import NOTHING_MEASURED, Measured
from kvtool.replay.workers import Workers
from kvtool.sizing.dtypes import AUTO
from kvtool.system.errors import KvtoolError


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """What to replay. `last` is the part of the requests that counts, those before it only fill the cache."""

    policies: tuple[str, ...] = ("lru",)
    capacities: tuple[Capacity, ...] = (Capacity(),)
    last: float = 1.0
    sort_by_time: bool = False
    kv_cache_dtype: str = AUTO
    state_every: int = 1
    tp: int = 1
    workers: Workers = field(default_factory=Workers)
    tiers: TierOptions | None = None
    cluster: ClusterOptions | None = None
    measured: Measured = NOTHING_MEASURED
    goals_s: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_policies(self.policies)
        if not 0 < self.last <= 1:
            raise KvtoolError(f"--last {self.last:g} must be above 0 and at most 1, as 0.5")


def check_asked(options: ReplayOptions, model: Model | None, gpu: Gpu | None) -> None:
    """Before the trace is read, which takes long. Raises KvtoolError for what says nothing without a model or card."""
    if options.tiers is not None:
        if model is None or (gpu is None and not has_steps(model, options.measured)):
            raise KvtoolError(
                "--tiers need a MODEL and a card: kvtool replay TRACE MODEL --gpu h100 --tiers dram=64GiB, or in place "
                "of the card a --profile with steps of that model"
            )
        ends = all(capacity != Capacity() for capacity in options.capacities)
        if "lru" not in options.policies or (options.tiers.tiers and not ends):
            raise KvtoolError("--tiers lie below an LRU cache that ends: give --capacity 20GiB, and lru as a --policy")
    if options.cluster is not None:
        nodes = options.cluster.cluster
        if model is None or (gpu is None and (nodes.prefill_card is None or nodes.decode_card is None)):
            raise KvtoolError(
                "--cluster needs a MODEL and a card: kvtool replay TRACE MODEL --cluster prefill=2xh100,decode=4xh200, "
                "or --gpu h100 for all nodes"
            )
        if options.tp != 1:
            raise KvtoolError(f"--tp {options.tp} is not of --cluster, whose nodes have gpus=8")
    if gpu is None and options.tp != 1 and not options.measured.observed:
        raise KvtoolError(f"--tp {options.tp} shares the prefill of a card: name it with --gpu")
    if model is not None:
        return
    if gpu is not None:
        raise KvtoolError(f"milliseconds on {gpu.name} need a MODEL: kvtool replay TRACE MODEL --gpu {gpu.name}")
    if options.kv_cache_dtype != AUTO or options.state_every != 1:
        raise KvtoolError("--kv-cache-dtype and --state-every are of a MODEL: kvtool replay TRACE MODEL")
    for capacity in options.capacities:
        in_unit(capacity, None)
