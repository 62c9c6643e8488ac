"""From which prefix length on loading beats computing, tier by tier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from kvtool.bench.tiers.options import TiersOptions
from kvtool.catalog.model import Model
from kvtool.engine.config import EngineConfig
from kvtool.engine.engine import Engine
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.sequence import SamplingParams
from kvtool.results import BreakEvenRow, TierRow, TierSpeed
from kvtool.sizing.speed.traffic import prefill_flops
from kvtool.units import ceil_div

LAYERS, PROMPT_TOKENS, PROMPTS = 4, 512, 4
UP_TO_TOKENS = 131_072


@dataclass(frozen=True, slots=True)
class Prefill:
    """FLOP/s that a prefill of PROMPT_TOKENS reached, with so many layers of the model."""

    flops_per_s: float
    layers: int


def measured_prefill(model: Model, options: TiersOptions) -> Prefill:
    """The first LAYERS layers with random weights: the others do the same again. Raises KvtoolError or DeviceError."""
    layers = min(LAYERS, model.num_layers)
    tokens = min(PROMPT_TOKENS, (model.max_position_embeddings or PROMPT_TOKENS) - 1)
    config = EngineConfig(
        device=options.device,
        dtype=options.dtype,
        kv_cache_dtype=options.kv_cache_dtype,
        block_size=options.block_size,
        num_layers=layers,
        prefix_caching=False,
    )
    loaded = LoadedModel(model, config, max_positions=tokens + 1)
    engine = Engine(loaded, num_pages=ceil_div(tokens + 1, options.block_size))
    seconds = [_prefill_s(engine, tokens) for _ in range(PROMPTS)]
    flops = prefill_flops(loaded.model, tokens)
    assert flops is not None  # the engine runs no model whose parameters cannot be counted
    return Prefill(flops / median(seconds[1:]), layers)


def _prefill_s(engine: Engine, tokens: int) -> float:
    sequence = engine.add([token % engine.loaded.vocab_size for token in range(tokens)], SamplingParams(max_tokens=1))
    for _ in engine.run_until_idle():
        pass
    return sequence.ttft_s


def tier_speeds(rows: Sequence[TierRow]) -> list[TierSpeed]:
    """Of each tier that was measured both ways: full blocks as the tiers move them, at the fastest queue depth."""
    speeds = []
    for tier in dict.fromkeys(row.tier for row in rows):
        blocks = [row for row in rows if row.tier == tier and row.size == "full block"]
        moved = [row for row in blocks if row.method in ("gathered pages", "requests")]
        up, down = ([row for row in moved if row.direction == direction] for direction in ("up", "down"))
        if up and down:
            best = max(up, key=lambda row: row.gbps.p50)
            speeds.append(
                TierSpeed(
                    tier=tier,
                    up_gbps=best.gbps.p50,
                    down_gbps=max(row.gbps.p50 for row in down),
                    latency_us=min(row.latency_us / (row.queue_depth if tier == "dram" else 1) for row in up),
                    measured=True,
                    remark=best.remark,
                )
            )
    return speeds


def break_even_rows(
    model: Model, speeds: Sequence[TierSpeed], prefill: Prefill, *, page_bytes: int, block_size: int
) -> list[BreakEvenRow]:
    """A row a tier. What a disk reads goes through host memory, one after the other, as the tiers do it."""
    dram = next((speed for speed in speeds if speed.tier == "dram"), None)
    up_to = max(block_size, min(model.max_position_embeddings or UP_TO_TOKENS, UP_TO_TOKENS) // block_size * block_size)

    def compute_s(tokens: int) -> float:
        return (prefill_flops(model, tokens) or 0) / prefill.flops_per_s

    rows = []
    for speed in speeds:
        chain = [speed] if dram is None or speed is dram else [speed, dram]

        def load_s(tokens: int, chain: Sequence[TierSpeed] = chain) -> float:
            moved = tokens // block_size * page_bytes
            return sum(each.latency_us / 1e6 + moved / each.up_gbps / 1e9 for each in chain)

        tokens = first_faster(load_s, compute_s, block_size, up_to)
        at = up_to if tokens is None else tokens
        rows.append(
            BreakEvenRow(
                model=model.id,
                tier=speed.tier,
                prefix_tokens=tokens,
                up_to_tokens=up_to,
                load_ms=1e3 * load_s(at),
                compute_ms=1e3 * compute_s(at),
                measured=speed.measured,
                points=[(n, 1e3 * load_s(n), 1e3 * compute_s(n)) for n in doubling(block_size, up_to)],
            )
        )
    return rows


def doubling(first: int, last: int) -> list[int]:
    """`first`, twice of it, and so on up to `last`, which ends the list."""
    found = [first]
    while 2 * found[-1] < last:
        found.append(2 * found[-1])
    return [*found, last] if last > first else found


def first_faster(
    load_s: Callable[[int], float], compute_s: Callable[[int], float], block_size: int, up_to: int
) -> int | None:
    """The least whole number of blocks, in tokens, from which on loading is faster; None where it is not at `up_to`.

    Computing grows at least as fast as loading does, so that loading, once faster, stays so.
    """
    if load_s(up_to) >= compute_s(up_to):
        return None
    low, high = 0, up_to // block_size
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if load_s(middle * block_size) < compute_s(middle * block_size) else (middle, high)
    return high * block_size
