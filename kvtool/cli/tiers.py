"""`kvtool tiers`: what host memory and a disk move on this machine, and when loading a prefix beats computing it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.cli.answer import answer, ending
from kvtool.cli.flags.group import grouped
from kvtool.cli.flags.output import ModelsOption, Output
from kvtool.cli.flags.shape import AsOption, check_named
from kvtool.cli.flags.tiers import TiersGrid
from kvtool.cli.progress import progress_bar
from kvtool.cli.values import command_line

if TYPE_CHECKING:
    from kvtool.results import TiersDocument

EXAMPLES = (
    "Examples:\n\n"
    "  kvtool tiers smollm2-135m --no-disk --seconds 0.1\n\n"
    "  kvtool tiers --disk . --queue-depth 1,8 --out kvtool-report"
)


@grouped
def tiers(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Whose pages to move (default: one that suits the device).")
    ] = None,
    *,
    grid: TiersGrid,
    as_family: AsOption = None,
    models: ModelsOption = None,
    output: Output,
) -> None:
    """Measure the tiers below a block pool: host memory and a disk, and from which prefix length on they pay."""
    from kvtool.machine.threads import bind_threads

    check_named(as_family, model)
    bind_threads(None, grid.device)

    from kvtool.bench.options import default_model
    from kvtool.bench.tiers.tiers import measure_tiers
    from kvtool.catalog.resolve import resolve_model
    from kvtool.report.files import check_writable
    from kvtool.report.machine.tiers import print_tiers, write_tiers

    options = grid.options()
    if output.out is not None:
        check_writable(output.out)
    name = default_model(grid.device) if model is None else model
    chosen = resolve_model(name, models_path=models, family=as_family)

    def write(document: TiersDocument, folder: Path) -> None:
        write_tiers(document, folder, command=command_line())

    with progress_bar() as progress:
        outcome = measure_tiers(chosen, options, progress=progress)
    notes, code = ending(outcome.errors, interrupted=outcome.interrupted)
    answer(outcome.document, output, show=print_tiers, write=write, notes=notes, code=code)
