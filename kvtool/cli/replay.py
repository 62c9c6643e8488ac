"""`kvtool replay`: what a prefix cache of any capacity and policy would have hit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.cli.options import CARD, LAYOUT, JsonOption, ModelsOption, OutOption
from kvtool.cli.trace import FormatOption, TraceArgument, TraceBlockSizeOption
from kvtool.units import split_list

if TYPE_CHECKING:
    from kvtool.catalog.gpus import Gpu
    from kvtool.catalog.model import Model

EXAMPLES = (
    "Examples:\n\n"
    "  kvtool replay conversation.jsonl --policy lru,optimal --capacity 1000\n\n"
    "  kvtool replay conversation.jsonl llama-3.1-8b --gpu h100 --out report"
)


def replay(
    trace: TraceArgument,
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="As for `size`: blocks get bytes, capacities may be bytes.")
    ] = None,
    policy: Annotated[
        str, typer.Option(metavar="LIST", help="Of lru, fifo, lfu, optimal, lru-plain, fifo-plain, lfu-plain.")
    ] = "lru",
    capacity: Annotated[
        str, typer.Option(metavar="LIST", help="Blocks as 1000, bytes as 20GiB (with MODEL), or none for no limit.")
    ] = "none",
    last: Annotated[
        float, typer.Option(metavar="PART", help="Count this last part of the requests; those before fill the cache.")
    ] = 1.0,
    sort_by_time: Annotated[
        bool, typer.Option("--sort-by-time", help="Replay by time, not in the file's order.")
    ] = False,
    form: FormatOption = None,
    block_size: TraceBlockSizeOption = None,
    kv_cache_dtype: Annotated[str, typer.Option("--kv-cache-dtype", help="Of MODEL's cache, as for `size`.")] = "auto",
    state_every: Annotated[
        int, typer.Option("--state-every", metavar="BLOCKS", help="Keep recurrent state at every so many blocks.")
    ] = 1,
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="Also say the milliseconds that hits save on it.", rich_help_panel=CARD)
    ] = None,
    tp: Annotated[int, typer.Option("--tp", help="GPUs that share a prefill.", rich_help_panel=LAYOUT)] = 1,
    jobs: Annotated[int, typer.Option("--jobs", help="Replays at a time (-1: every core).")] = -1,
    models: ModelsOption = None,
    json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Replay TRACE through a prefix cache: hits of each policy at each capacity, beside the most that any could hit."""
    from kvtool.replay.capacity import parse_capacity
    from kvtool.replay.replay import ReplayOptions
    from kvtool.replay.replay import replay as replay_trace
    from kvtool.results import encode
    from kvtool.workloads.traces import open_trace

    if out is not None:
        from kvtool.report.files import check_writable

        check_writable(out)
    options = ReplayOptions(
        policies=tuple(split_list(policy)),
        capacities=tuple(parse_capacity(item) for item in split_list(capacity)),
        last=last,
        sort_by_time=sort_by_time,
        kv_cache_dtype=kv_cache_dtype,
        state_every=state_every,
        tp=tp,
        jobs=jobs,
    )
    document = replay_trace(
        open_trace(trace, form=form, block_size=block_size),
        options,
        model=None if model is None else _model(model, models),
        gpu=None if gpu is None else _gpu(gpu),
    )
    if out is not None:
        from kvtool.report.replay.replay import write_replay

        write_replay(document, out)
    if json:
        typer.echo(encode(document), nl=False)
        for line in document.warnings:
            typer.echo(f"kvtool: {line}", err=True)
        return
    from kvtool.report.replay.replay import print_replay
    from kvtool.report.terminal import Terminal

    print_replay(document, Terminal())


def _model(name: str, models: Path | None) -> Model:
    from kvtool.catalog.resolve import resolve_model

    return resolve_model(name, models_path=models)


def _gpu(name: str) -> Gpu:
    from kvtool.catalog.gpus import find_gpu

    return find_gpu(name)
