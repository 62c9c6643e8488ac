"""What `kvtool bench` measures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvtool.cli.flags.group import Group
from kvtool.cli.values import optional_counts, optional_length, optional_lengths, share_list
from kvtool.system.errors import KvtoolError
from kvtool.units import split_list

if TYPE_CHECKING:
    from kvtool.bench.options import BenchOptions
    from kvtool.cli.flags.workload import WorkloadFlags

_prefix = partial(typer.Option, rich_help_panel="Shared prefixes")
_queue = partial(typer.Option, rich_help_panel="Requests that queue")


@dataclass(frozen=True)
class BenchGrid(Group):
    """The parts, their grid, and how often each case is measured."""

    parts: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Of latency, prefix, no-cache (these by default), workload, accuracy, fragmentation, ranks, "
            "disaggregate.",
        ),
    ] = None
    input_len: Annotated[str | None, typer.Option(metavar="LIST", help="Prompt tokens, as 128,512,4k.")] = None
    output_len: Annotated[int | None, typer.Option(help="Tokens generated a request, exactly.")] = None
    batch_size: Annotated[str | None, typer.Option(metavar="LIST", help="Requests at a time, as 1,8,32.")] = None
    num_iters: Annotated[int | None, typer.Option(help="Measured iterations a case.")] = None
    num_iters_warmup: Annotated[int | None, typer.Option(help="Iterations before, thrown away.")] = None
    runs: Annotated[
        int, typer.Option(min=1, help="Whole processes, their samples joined: compare needs two a side, better three.")
    ] = 1
    peers: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Run these engines too, in turns with ours: all, or of transformers, transformers-static, "
            "transformers-paged, vllm, sglang.",
        ),
    ] = None
    prefix_len: Annotated[
        str | None,
        _prefix(metavar="TOKENS", help="Cached tokens; the prompts get as long as --hit-rate makes them."),
    ] = None
    hit_rate: Annotated[
        str | None,
        _prefix(
            metavar="LIST", help="Share of prompt tokens found in the cache (default: 0,0.5,0.9; a workload's own)."
        ),
    ] = None
    concurrency: Annotated[int | None, _queue(help="Requests in flight; the others wait their turn.")] = None
    request_rate: Annotated[float | None, _queue(help="Requests a second, arriving at random.")] = None
    burstiness: Annotated[
        float, _queue(help="Of arrivals at --request-rate: 1 is Poisson, less is in bursts, more is even.")
    ] = 1.0
    num_prompts: Annotated[
        int | None, _queue(help="Requests a case that queues (default: 4 a batch), or a workload.")
    ] = None

    def options(self, device: str, seed: int, traffic: WorkloadFlags, **more: Any) -> BenchOptions:
        """The options for that device, which has defaults of its own; `more` are other parts'. Raises KvtoolError."""
        from kvtool.bench.engines.engine import ENGINE_PEERS
        from kvtool.bench.options import DEFAULT_PARTS, bench_options
        from kvtool.bench.peers import peer_names

        parts = traffic.parts(self.parts) or DEFAULT_PARTS
        queues = self.concurrency is not None or self.request_rate is not None
        queues = queues or not {"workload", "fragmentation", "disaggregate"}.isdisjoint(parts)
        if self.num_prompts is not None and not queues:
            raise KvtoolError(
                "--num-prompts needs --concurrency or --request-rate: without a queue a batch is all there is"
            )
        return bench_options(
            device,
            parts=parts,
            input_lens=optional_lengths(self.input_len, "input length"),
            output_len=self.output_len,
            batch_sizes=optional_counts(self.batch_size, "batch size"),
            num_iters=self.num_iters,
            num_iters_warmup=self.num_iters_warmup,
            prefix_len=optional_length(self.prefix_len, "prefix length"),
            hit_rates=None if self.hit_rate is None else share_list(self.hit_rate, "hit rate"),
            concurrency=self.concurrency,
            request_rate=self.request_rate,
            burstiness=self.burstiness,
            num_prompts=self.num_prompts,
            seed=seed,
            peers=() if self.peers is None else peer_names(split_list(self.peers), known=ENGINE_PEERS),
            **traffic.options(parts),
            **more,
        )
