"""What advice is asked for: a model, cards, traffic and what matters."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvtool.advise.replica import Replica, replica
from kvtool.advise.traffic import Traffic
from kvtool.catalog.gpus import Gpu
from kvtool.catalog.model import Model
from kvtool.replay.tiers.options import TierOptions
from kvtool.sizing.dtypes import AUTO
from kvtool.system.errors import KvtoolError, did_you_mean

LATENCY, THROUGHPUT, MONEY = GOALS = ("latency", "throughput", "money")
WIDEST_TP = 8  # cards of a node, inside which tensor parallelism stays
MATERIAL = 1.05  # a gain below this is no reason: runs of one thing differ by as much


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """`concurrency` None: one request for latency, else as many as fit. `tiers` have their speeds; `name`, `workload`
    are as typed, for the commands that check the advice; `measured` says what took the place of the card's figures.
    """

    name: str
    model: Model
    gpu: Gpu
    num_gpus: int
    workload: str
    traffic: Traffic
    goal: str
    concurrency: int | None = None
    ttft_goal_s: float | None = None
    tpot_goal_s: float | None = None
    tiers: TierOptions | None = None
    price_per_hour: float | None = None
    measured: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.goal not in GOALS:
            raise KvtoolError(f"--goal {self.goal!r} is not one of {', '.join(GOALS)}{did_you_mean(self.goal, GOALS)}")
        if not 1 <= self.num_gpus <= 4096:
            raise KvtoolError(f"--num-gpus {self.num_gpus} must be from 1 to 4096")
        if self.concurrency is not None and not 1 <= self.concurrency <= 1 << 24:
            raise KvtoolError(f"--concurrency {self.concurrency} must be from 1 to {1 << 24}")
        if self.price_per_hour is not None and not 0 < self.price_per_hour < float("inf"):
            raise KvtoolError(f"--price-per-hour {self.price_per_hour:g} must be above 0, as 2.5")

    @property
    def users(self) -> int | None:
        """Requests in flight; None: as many as fit."""
        return 1 if self.concurrency is None and self.goal == LATENCY else self.concurrency

    @property
    def link_gbps(self) -> float | None:
        """Between two cards, one way; None where no source tells."""
        return self.gpu.link_gbps or self.gpu.pcie_gbps

    @property
    def widest_tp(self) -> int:
        """Cards that one copy may be spread over: one where nothing is known of what lies between them."""
        return min(WIDEST_TP, self.num_gpus) if self.link_gbps is not None else 1

    def replica(self, *, tp: int = 1, dcp: int = 1, kv_cache_dtype: str = AUTO) -> Replica:
        """Raises KvtoolError for a layout that the model cannot take."""
        return replica(self.model, self.gpu, tp=tp, dcp=dcp, kv_cache_dtype=kv_cache_dtype)

    def smallest(self, kv_cache_dtype: str = AUTO) -> Replica | None:
        """The fewest cards that hold the model and one of its requests; None: the cards that there are do not.

        Raises KvtoolError where the model can be laid out over no number of them.
        """
        refusal: KvtoolError | None = None
        tried = False
        for tp in (count for count in (1, 2, 4, WIDEST_TP) if count <= self.widest_tp):
            try:
                found = self.replica(tp=tp, kv_cache_dtype=kv_cache_dtype)
            except KvtoolError as error:
                refusal = refusal or error
                continue
            tried = True
            if found.holds(self.traffic.longest_tokens):
                return found
        if refusal is not None and not tried:
            raise refusal
        return None

    def on(self, num_gpus: int) -> Situation:
        """The same with another number of cards."""
        return replace(self, num_gpus=num_gpus)
