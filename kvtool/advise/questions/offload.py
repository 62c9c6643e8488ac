"""Offload, or compute again? What comes again and does not fit is either loaded from a tier or prefilled anew."""

from __future__ import annotations

from collections.abc import Iterator

from kvtool.advise import commands
from kvtool.advise.decision import decision
from kvtool.advise.serving import Serving, room_tokens
from kvtool.advise.situation import Situation
from kvtool.replay.tiers.breakeven import break_even_gbps, transfer_s
from kvtool.replay.tiers.options import Tier
from kvtool.results import AdviseDecision
from kvtool.units import format_bytes, format_ms

NO = "do not offload"


def decide(situation: Situation, serving: Serving) -> Iterator[AdviseDecision]:
    """One decision a tier. A card loads its own part of a prefix through its own link."""
    tiers = situation.tiers.tiers if situation.tiers is not None else ()
    for tier in tiers:
        yield _decide(situation, serving, tier)


def _decide(situation: Situation, serving: Serving, tier: Tier) -> AdviseDecision:
    question = f"Offload to {tier.name}?"
    traffic = situation.traffic
    if not traffic.hit_tokens:
        return decision(
            question,
            NO,
            value=0.0,
            threshold=None,
            unit="tokens that come again",
            because=f"no prompt of {traffic.source} begins as one before it: nothing that was kept would be loaded",
            command=commands.traffic(situation),
        )
    room = serving.replicas * room_tokens(serving.replica, situation, serving.batch)
    if traffic.reused_tokens <= room:
        return decision(
            question,
            NO,
            value=float(traffic.reused_tokens),
            threshold=float(room),
            unit="tokens that come again",
            because=f"all that comes again fits beside what runs in {situation.num_gpus} x {situation.gpu.name}",
            command=commands.size(situation, serving),
        )
    return _by_time(situation, serving, tier, room)


def _by_time(situation: Situation, serving: Serving, tier: Tier, room: int) -> AdviseDecision:
    """The tier's speed against the one at which loading takes as long as computing (Mooncake, FAST '25, eq. 2)."""
    traffic, copy = situation.traffic, serving.replica
    assert tier.read_gbps is not None
    tokens = traffic.hit_tokens
    moved, compute_s = copy.cached_bytes(tokens), copy.floor.compute_s(0, tokens)
    load_s = transfer_s(moved, tier.read_gbps, tier.latency_s)
    needed = break_even_gbps(moved, compute_s * copy.floor.flops_per_s, copy.floor.flops_per_s)
    missing = format_bytes(copy.cached_bytes(traffic.reused_tokens))
    return decision(
        f"Offload to {tier.name}?",
        "yes" if load_s < compute_s else f"{NO}: compute again",
        value=moved / load_s / 1e9,
        threshold=needed,
        unit="GB/s a card",
        because=f"{tokens:,} tokens load in {format_ms(1e3 * load_s)} ms and compute in {format_ms(1e3 * compute_s)}; "
        f"of {traffic.reused_tokens:,} that come again ({missing} a card) {room:,} fit",
        command=_command(situation, tier, room),
        options={"load, ms": 1e3 * load_s, "compute, ms": 1e3 * compute_s},
    )


def _command(situation: Situation, tier: Tier, room: int) -> str:
    if situation.traffic.trace is None:
        return commands.bench(situation, "--parts", "prefix", "--tiers", "dram=4GiB") if tier.name == "dram" else (
            f"kvtool tiers {situation.name}"
        )  # fmt: skip
    blocks = max(1, room // situation.traffic.block_size)
    return commands.replay(
        situation, "--capacity", str(blocks), "--tiers", f"{tier.name}={tier.capacity_bytes}@{tier.read_gbps:g}"
    )
