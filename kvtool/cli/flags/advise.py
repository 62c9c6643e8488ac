"""What `kvtool advise` is asked about: traffic, cards and what matters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvtool.cli.flags.card import NamedCard
from kvtool.cli.flags.group import Group
from kvtool.cli.values import optional_length
from kvtool.units import parse_length, split_list

if TYPE_CHECKING:
    from kvtool.advise.situation import Situation
    from kvtool.advise.traffic import Traffic
    from kvtool.catalog.model import Model

UNKNOWN_VOCABULARY = 32000  # of prompts whose tokens nobody reads
USUAL_BLOCK_SIZE = 16
USUAL_TIER = "dram=1TiB"


@dataclass(frozen=True)
class AdviseTraffic(Group):
    """Which requests."""

    workload: Annotated[
        str,
        typer.Option(
            help="independent, translation, few-shot, multi-turn, agent, ranking, parallel, edit, or a trace file."
        ),
    ] = "independent"
    input_len: Annotated[str, typer.Option(metavar="TOKENS", help="The longest prompt of a named workload.")] = "4k"
    output_len: Annotated[str, typer.Option(metavar="TOKENS", help="Its answers; 1 scores and generates nothing.")] = (
        "256"
    )
    prefix_len: Annotated[str | None, typer.Option(metavar="TOKENS", help="What its prompts share.")] = None
    hit_rate: Annotated[float | None, typer.Option(help="Share of prompt tokens that come again.")] = None
    num_prompts: Annotated[int, typer.Option(min=1, help="Requests between which prefixes come again.")] = 64
    trace_format: Annotated[
        str | None, typer.Option(help="Of a trace file, where its first bytes do not tell: as for `replay`.")
    ] = None

    def traffic(self, model: Model) -> Traffic:
        """Raises KvtoolError."""
        from kvtool.advise.traffic import traffic_of
        from kvtool.workloads.scenarios.base import Shape

        shape = Shape(
            num_prompts=self.num_prompts,
            input_len=parse_length(self.input_len, "input length"),
            output_len=parse_length(self.output_len, "output length"),
            block_size=USUAL_BLOCK_SIZE,
            vocab_size=model.vocab_size or UNKNOWN_VOCABULARY,
            prefix_len=optional_length(self.prefix_len, "prefix length"),
            hit_rate=self.hit_rate,
        )
        return traffic_of(self.workload, shape, trace_format=self.trace_format)


@dataclass(frozen=True)
class Advised(Group):
    """On what, and what for."""

    goal: Annotated[str, typer.Option(help="What matters: latency, throughput or money.")] = "latency"
    num_gpus: Annotated[int | None, typer.Option(help="Cards (default: the fewest that hold what is in flight).")] = (
        None
    )
    concurrency: Annotated[
        int | None, typer.Option(help="Requests in flight (default: 1 for latency, else as many as fit).")
    ] = None
    goodput: Annotated[
        str | None, typer.Option(metavar="LIMITS", help="Milliseconds to keep, as ttft:200,tpot:50.")
    ] = None
    tiers: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="To offload to, as dram=64GiB,disk=1TiB@7/4 (GB/s; default: host memory, if known)."
        ),
    ] = None
    profile: Annotated[
        str | None, typer.Option(metavar="FILES", help="Measured speeds: documents of kvtool bench and kvtool tiers.")
    ] = None
    price_per_hour: Annotated[float | None, typer.Option(metavar="PRICE", help="Of one card.")] = None

    def situation(self, name: str, model: Model, requests: AdviseTraffic, card: NamedCard) -> Situation:
        """Raises KvtoolError for what is none, and without a card."""
        from kvtool.advise.advise import fewest_gpus
        from kvtool.advise.measured import measured_card
        from kvtool.advise.situation import Situation
        from kvtool.replay.cluster.options import parse_goal
        from kvtool.replay.tiers.options import TierOptions, parse_tiers
        from kvtool.replay.tiers.profile import read_profiles

        paths = [Path(item) for item in split_list(self.profile)] if self.profile else []
        measured = read_profiles(paths)
        gpu = measured_card(card.found(), paths, measured)
        limits: dict[str, float] = parse_goal(self.goodput) if self.goodput else {}
        dram = USUAL_TIER if gpu.pcie_gbps is not None or USUAL_TIER.partition("=")[0] in measured.tiers else None
        named = self.tiers or dram
        tiers = None
        if named is not None:
            tiers = TierOptions(tiers=parse_tiers(named)[0]).with_speeds(measured.tiers, gpu.pcie_gbps)
        asked: dict[str, Any] = {"concurrency": self.concurrency, "price_per_hour": self.price_per_hour}
        situation = Situation(
            name=name,
            model=model,
            gpu=gpu,
            num_gpus=1 if self.num_gpus is None else self.num_gpus,
            workload=requests.workload,
            traffic=requests.traffic(model),
            goal=self.goal,
            ttft_goal_s=limits.get("ttft"),
            tpot_goal_s=limits.get("tpot"),
            tiers=tiers,
            measured=measured.sources,
            **asked,
        )
        return situation if self.num_gpus is not None else fewest_gpus(situation)
