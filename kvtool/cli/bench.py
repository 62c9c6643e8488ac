"""`kvtool bench`: run a paged-cache generator on this machine and say how close it comes to what the machine can do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.cli.answer import answer, ending
from kvtool.cli.flags.bench import BenchGrid
from kvtool.cli.flags.group import grouped
from kvtool.cli.flags.layout import RankLists
from kvtool.cli.flags.output import ModelsOption, Output
from kvtool.cli.flags.run import Run
from kvtool.cli.flags.server import OWN, ServerFlags
from kvtool.cli.flags.smaller import SmallerFlags
from kvtool.cli.flags.tiers import Tiers
from kvtool.cli.flags.workload import WorkloadFlags
from kvtool.cli.progress import progress_bar
from kvtool.cli.values import command_line, given
from kvtool.system.errors import KvtoolError

if TYPE_CHECKING:
    from kvtool.bench.engines.server.options import ServerOptions
    from kvtool.results import BenchDocument

EXAMPLES = (
    "Examples:\n\n"
    "  kvtool bench smollm2-135m --parts latency --input-len 128 --batch-size 1,4\n\n"
    "  kvtool bench --workload translation,agent --out kvtool-report"
)


@grouped
def bench(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="What to run (default: one that suits the device)."),
    ] = None,
    *,
    grid: BenchGrid,
    traffic: WorkloadFlags,
    smaller: SmallerFlags,
    run: Run,
    ranks: RankLists,
    tiers: Tiers,
    server: ServerFlags,
    models: ModelsOption = None,
    output: Output,
) -> None:
    """Measure TTFT, TPOT, bandwidth, what prefix hits save, and what a cache buys, on this machine."""
    server.refuse_without_url(typed := given(ctx))
    if server.url is not None:
        asked = server.options(grid, traffic, run, ranks.lone_tp(), typed)
        _bench_server(server, model, models, asked, run, grid.peers == OWN, output)
        return
    load = run.begin()

    from kvtool.bench.bench import bench as run_bench
    from kvtool.bench.options import default_model
    from kvtool.report.bench.bench import print_bench
    from kvtool.report.files import check_writable

    grid = ranks.grid(grid)
    shared = {"layouts": ranks.layouts(), "disaggregation": ranks.disaggregation()}
    options = grid.options(run.device, run.seed, traffic, **shared, **smaller.given(run))
    run, below = smaller.run_of(run, traffic.parts(grid.parts) or ()), tiers.options()
    if output.out is not None:
        check_writable(output.out)
    chosen = run.model(model, models, default=default_model(run.device))
    config = run.config(model, other_cores=load.other_cores(), tiers=below)

    if grid.runs > 1:
        if not all(part.timed for part in options.parts):
            raise KvtoolError("--runs joins times, and accuracy and fragmentation have none: leave it out")
        document, (notes, code) = _several(grid)
    else:
        with progress_bar() as progress:
            outcome = run_bench(
                chosen, config, options, progress=progress, tell=lambda line: typer.echo(f"kvtool: {line}", err=True)
            )
        document = outcome.document
        notes, code = ending(outcome.errors, interrupted=outcome.interrupted, wrong=outcome.unequal)
    answer(document, output, show=print_bench, write=_write, notes=notes, code=code)


def _write(document: BenchDocument, folder: Path) -> None:
    from kvtool.report.bench.bench import write_bench

    written = write_bench(document, folder, command=command_line())
    typer.echo(f"\nWritten to {folder}: {', '.join(path.name for path in written)}", err=True)


def _bench_server(
    server: ServerFlags,
    model: str | None,
    models: Path | None,
    options: ServerOptions,
    run: Run,
    own: bool,
    output: Output,
) -> None:
    """The server at --url in place of kvtool's own engine."""
    from kvtool.bench.engines.server.measure import measure_server
    from kvtool.report.bench.bench import print_bench
    from kvtool.report.files import check_writable

    if output.out is not None:
        check_writable(output.out)
    target = server.target(model, models, run, own=own)
    try:
        with progress_bar() as progress:
            outcome = measure_server(target, options, progress=progress)
    finally:
        target.client.close()
    notes, code = ending(outcome.errors, interrupted=outcome.interrupted)
    answer(outcome.document, output, show=print_bench, write=_write, notes=notes, code=code)


def _several(grid: BenchGrid) -> tuple[BenchDocument, tuple[list[str], int]]:
    """Each run as it was typed, in a process of its own. Raises KvtoolError where peers run too."""
    from kvtool.bench.runs import INTERRUPTED, measure_runs

    if grid.peers is not None:
        raise KvtoolError("--runs joins our own samples: leave --peers to a single run")
    runs = measure_runs(sys.argv[1:], grid.runs)
    told = ["kvtool: interrupted; the runs that were whole are kept"] if runs.code == INTERRUPTED else []
    return runs.document, (told, runs.code)
