"""What `kvtool bench` is asked to run, and what it runs when it is not told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from kvtool.bench.cases.accuracy import AccuracyPart
from kvtool.bench.cases.base import Part, require_positive
from kvtool.bench.cases.disaggregate import DisaggregatePart
from kvtool.bench.cases.fragmentation import FragmentationPart
from kvtool.bench.cases.latency import Latency
from kvtool.bench.cases.no_cache import NoCache
from kvtool.bench.cases.prefix import PrefixHits
from kvtool.bench.cases.ranks import RanksPart
from kvtool.bench.cases.workload import Workload
from kvtool.catalog.model import Model
from kvtool.machine.device import resolve_device
from kvtool.system.errors import KvtoolError

DEFAULT_PARTS = ("latency", "prefix", "no-cache")
PARTS: dict[str, type[Part]] = {  # in the order they run
    "latency": Latency,
    "prefix": PrefixHits,
    "no-cache": NoCache,
    "workload": Workload,
    "accuracy": AccuracyPart,
    "fragmentation": FragmentationPart,
    "ranks": RanksPart,
    "disaggregate": DisaggregatePart,
}
CPU_MODEL, GPU_MODEL = "smollm2-135m", "llama-3.2-1b"
CPU_ITERS, CPU_ITERS_WARMUP = 3, 1
GPU_ITERS, GPU_ITERS_WARMUP = 5, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """The parts, each with its own grid, how often their cases are measured, and engines that run beside ours. `trims`:
    iterations are left out where they would not be over within `budget_s`."""

    parts: tuple[Part, ...]
    num_iters: int
    num_iters_warmup: int
    seed: int = 0
    peers: tuple[str, ...] = ()
    trims: bool = False

    def __post_init__(self) -> None:
        require_positive("num-iters", self.num_iters)
        if self.num_iters_warmup < 0:
            raise KvtoolError(f"num-iters-warmup {self.num_iters_warmup} must not be negative")
        if self.peers and not any(isinstance(part, Latency) and not part.queues for part in self.parts):
            raise KvtoolError("--peers run whole batches of the latency part: no --concurrency or --request-rate")

    @property
    def budget_s(self) -> float:
        """That measured iterations take at most, but for the first of each case."""
        return sum(part.budget_s for part in self.parts)

    def fitted(self, model: Model, block_size: int, *, tiers: bool = False) -> BenchOptions:
        """The same with each part made for that model, pages of that size, and tiers below. Raises KvtoolError."""
        return replace(self, parts=tuple(part.fitted(model, block_size, tiers=tiers) for part in self.parts))

    @property
    def longest_tokens(self) -> int:
        """Of any sequence of any part."""
        return max(part.longest_tokens for part in self.parts)

    @property
    def most_sequences(self) -> int:
        """Sequences of any part that must be held at a time."""
        return max(part.most_sequences for part in self.parts)


def default_model(device: str) -> str:
    """A larger one on a GPU."""
    return GPU_MODEL if _on_gpu(device) else CPU_MODEL


def bench_options(
    device: str,
    *,
    parts: Sequence[str] = DEFAULT_PARTS,
    num_iters: int | None = None,
    num_iters_warmup: int | None = None,
    seed: int = 0,
    peers: tuple[str, ...] = (),
    **given: Any,
) -> BenchOptions:
    """What is given goes to every part that has an option of its name; None leaves it at the device's default.

    Raises KvtoolError for an unknown part, and for values that make no sense to the parts that run.
    """
    gpu = _on_gpu(device)
    _refuse_unknown(parts, given)
    known = {name: _given(kind.default(gpu=gpu), given) for name, kind in PARTS.items() if name in parts}
    iters, warmup = (GPU_ITERS, GPU_ITERS_WARMUP) if gpu else (CPU_ITERS, CPU_ITERS_WARMUP)
    return BenchOptions(
        parts=tuple(known.values()),
        num_iters=iters if num_iters is None else num_iters,
        num_iters_warmup=warmup if num_iters_warmup is None else num_iters_warmup,
        seed=seed,
        peers=peers,
        trims=num_iters is None,
    )


def _refuse_unknown(parts: Sequence[str], given: dict[str, Any]) -> None:
    for name in parts:
        if name not in PARTS:
            raise KvtoolError(f"unknown part {name!r}: choose from {', '.join(PARTS)}")
    if unknown := given.keys() - {field.name for kind in PARTS.values() for field in fields(kind)}:
        raise TypeError(f"no part has an option {', '.join(sorted(unknown))}")


def _given(default: Part, given: dict[str, Any]) -> Part:
    """The part with those of its options that were given."""
    return replace(default, **{f.name: given[f.name] for f in fields(default) if given.get(f.name) is not None})


def _on_gpu(device: str) -> bool:
    return resolve_device(device).type == "cuda"
