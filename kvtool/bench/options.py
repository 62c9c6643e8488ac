"""What `kvtool bench` is asked to run."""

from __future__ import annotations

from dataclasses import dataclass

from kvtool.errors import KvtoolError

PARTS = ("latency", "prefix", "no-cache")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """The grid and how often it is measured. Lengths are tokens; `output_len` is the latency part's.

    `no_cache_lens` are the lengths that the ways of keeping K and V are compared at. `prefix_len` None lets the hit
    rates stand for shares of the longest prompt; otherwise that many tokens are shared and cached, and the prompt is as
    long as the hit rate makes it.
    """

    input_lens: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    output_len: int
    prefix_output_len: int
    no_cache_output_len: int
    num_iters: int
    num_iters_warmup: int
    parts: tuple[str, ...] = PARTS
    prefix_len: int | None = None
    hit_rates: tuple[float, ...] = (0.0, 0.5, 0.9)
    no_cache_lens: tuple[int, ...] = (128, 256, 512)
    concurrency: int | None = None
    request_rate: float | None = None
    num_prompts: int | None = None
    seed: int = 0
    peers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require_positive(self.input_lens, "input length")
        _require_positive(self.batch_sizes, "batch size")
        _require_positive((self.output_len, self.prefix_output_len, self.no_cache_output_len), "output length")
        _require_positive((self.num_iters,), "num-iters")
        _require_positive(
            tuple(n for n in (self.concurrency, self.num_prompts, self.prefix_len) if n is not None), "count"
        )
        if self.peers and (self.queues or "latency" not in self.parts):
            raise KvtoolError("--peers run whole batches of the latency part: no --concurrency or --request-rate")
        if self.num_iters_warmup < 0:
            raise KvtoolError(f"num-iters-warmup {self.num_iters_warmup} must not be negative")
        for part in self.parts:
            if part not in PARTS:
                raise KvtoolError(f"unknown part {part!r}: choose from {', '.join(PARTS)}")
        for rate in self.hit_rates:
            if not 0.0 <= rate < 1.0:
                raise KvtoolError(f"hit rate {rate} must be at least 0 and below 1: the last token is always computed")
        if self.request_rate is not None and not 0.0 < self.request_rate < 1e9:
            raise KvtoolError(f"request rate {self.request_rate} must be above 0 requests per second")

    @property
    def queues(self) -> bool:
        """Whether requests wait for their turn: then prefill and decode mix in one step, as in a server."""
        return self.concurrency is not None or self.request_rate is not None

    @property
    def longest_tokens(self) -> int:
        """Of any sequence of any part."""
        lengths = [*self.input_lens] if {"latency", "prefix"} & set(self.parts) else []
        lengths += self.no_cache_lens if "no-cache" in self.parts else ()
        if "prefix" in self.parts and self.prefix_len is not None:
            lengths += [prompt_len(self.prefix_len, rate) for rate in self.hit_rates]
        return max(lengths) + max(self.output_len, self.prefix_output_len, self.no_cache_output_len)


def prompt_len(prefix_len: int, hit_rate: float) -> int:
    """The length of a prompt of which `prefix_len` tokens are the share `hit_rate`; the prefix itself where it is 0."""
    return prefix_len if hit_rate == 0 else max(prefix_len + 1, round(prefix_len / hit_rate))


def _require_positive(values: tuple[int, ...], what: str) -> None:
    for value in values:
        if value < 1:
            raise KvtoolError(f"{what} {value} must be at least 1")
