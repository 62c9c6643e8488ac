"""`kvtool bench`: run a paged-cache generator on this machine and say how close it comes to what the machine can do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from kvtool.cli.options import BlockSizeOption, JsonOption, ModelsOption, OutOption, count_list, length_list
from kvtool.cli.run_options import (
    BackendOption,
    DeviceOption,
    DtypeOption,
    NoGraphsOption,
    NumLayersOption,
    RunKvCacheDtypeOption,
    SeedOption,
    ThreadsOption,
    WeightsOption,
    engine_config,
    model_of,
    weights_of,
)
from kvtool.errors import KvtoolError
from kvtool.units import parse_length, split_list

EXAMPLES = (
    "Examples:\n\n"
    "  kvtool bench smollm2-135m --parts latency --input-len 128 --batch-size 1,4\n\n"
    "  kvtool bench --parts prefix --hit-rate 0,0.9 --out kvtool-report"
)


def bench(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="What to run (default: one that suits the device)."),
    ] = None,
    parts: Annotated[
        str, typer.Option(metavar="LIST", help="Of latency, prefix, no-cache.")
    ] = "latency,prefix,no-cache",
    input_len: Annotated[str | None, typer.Option(metavar="LIST", help="Prompt tokens, as 128,512,4k.")] = None,
    output_len: Annotated[int | None, typer.Option(help="Tokens generated a request, exactly.")] = None,
    batch_size: Annotated[str | None, typer.Option(metavar="LIST", help="Requests at a time, as 1,8,32.")] = None,
    num_iters: Annotated[int | None, typer.Option(help="Measured iterations a case.")] = None,
    num_iters_warmup: Annotated[int | None, typer.Option(help="Iterations before, thrown away.")] = None,
    prefix_len: Annotated[
        str | None,
        typer.Option(metavar="TOKENS", help="Cached tokens; the prompts get as long as --hit-rate makes them."),
    ] = None,
    hit_rate: Annotated[
        str, typer.Option(metavar="LIST", help="Share of prompt tokens found in the cache.")
    ] = "0,0.5,0.9",
    concurrency: Annotated[int | None, typer.Option(help="Requests in flight; the others wait their turn.")] = None,
    request_rate: Annotated[float | None, typer.Option(help="Requests a second, arriving at random (Poisson).")] = None,
    num_prompts: Annotated[int | None, typer.Option(help="Requests a case that queues (default: 4 a batch).")] = None,
    peers: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Run these engines too, in turns with ours: all, or of transformers, transformers-static, "
            "transformers-paged, vllm, sglang.",
        ),
    ] = None,
    weights: WeightsOption = None,
    dtype: DtypeOption = "auto",
    kv_cache_dtype: RunKvCacheDtypeOption = "auto",
    block_size: BlockSizeOption = 16,
    num_layers: NumLayersOption = None,
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    no_graphs: NoGraphsOption = False,
    threads: ThreadsOption = None,
    seed: SeedOption = 0,
    models: ModelsOption = None,
    json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Measure TTFT, TPOT, bandwidth, what prefix hits save, and what a cache buys, on this machine."""
    from kvtool.bench.bench import bench as run_bench
    from kvtool.bench.defaults import bench_options, default_model
    from kvtool.bench.engines.engine import ENGINE_PEERS
    from kvtool.bench.peers import peer_names
    from kvtool.report.bench.bench import print_bench, write_bench
    from kvtool.report.files import check_writable
    from kvtool.report.terminal import Terminal
    from kvtool.results import encode

    if num_prompts is not None and concurrency is None and request_rate is None:
        raise KvtoolError(
            "--num-prompts needs --concurrency or --request-rate: without a queue a batch is all there is"
        )
    if out is not None:
        check_writable(out)
    chosen = model_of(model, weights, models, default=default_model(device))
    options = bench_options(
        device,
        parts=tuple(split_list(parts)),
        input_lens=length_list(input_len, "input length") if input_len else None,
        output_len=output_len,
        batch_sizes=count_list(batch_size, "batch size") if batch_size else None,
        num_iters=num_iters,
        num_iters_warmup=num_iters_warmup,
        prefix_len=parse_length(prefix_len, "prefix length") if prefix_len else None,
        hit_rates=tuple(_share(item) for item in split_list(hit_rate)),
        concurrency=concurrency,
        request_rate=request_rate,
        num_prompts=num_prompts,
        seed=seed,
        peers=peer_names(split_list(peers), known=ENGINE_PEERS) if peers is not None else (),
    )
    config = engine_config(
        weights=weights_of(model or "", weights),
        dtype=dtype,
        kv_cache_dtype=kv_cache_dtype,
        device=device,
        backend=backend,
        block_size=block_size,
        num_layers=num_layers,
        threads=threads,
        seed=seed,
        prefill_first=not options.queues,
        graphs=not no_graphs,
    )
    with progress_bar() as progress:
        outcome = run_bench(chosen, config, options, progress=progress)
    if out is not None:
        write_bench(outcome.document, out)
    if json:
        typer.echo(encode(outcome.document), nl=False)
    else:
        print_bench(outcome.document, Terminal())
        if out is not None:
            typer.echo(f"\nWritten to {out}: bench.json, bench.csv, bench.png, report.html", err=True)
    for error in outcome.errors:
        typer.echo(f"kvtool: {error}", err=True)
    if outcome.interrupted:
        typer.echo("kvtool: interrupted; the cases that were done are kept", err=True)
        raise typer.Exit(130)
    if outcome.errors:
        raise typer.Exit(3)


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float], None]]:
    """A bar on standard error that says what is going on; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda doing, done: bar.update(task, description=doing, completed=done)


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise KvtoolError(f"hit rate {text!r} is not a number: write a list as 0,0.5,0.9") from None
