"""`kvtool kernels`: the attention kernels alone, next to what this machine can do."""

from __future__ import annotations

from typing import Annotated

import typer

from kvtool.cli.answer import answer, ending
from kvtool.cli.flags.group import grouped
from kvtool.cli.flags.kernels import KernelsGrid
from kvtool.cli.flags.output import ModelsOption, Output
from kvtool.cli.flags.shape import AsOption, check_named
from kvtool.cli.progress import progress_bar

EXAMPLES = (
    "Examples:\n\n"
    "  kvtool kernels smollm2-135m --context 512,4k --out kvtool-report\n\n"
    "  kvtool kernels llama-3.2-1b --context 1k --kv-cache-dtype bf16,fp8"
)


@grouped
def kernels(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="Whose layer shapes to run (default: one that suits the device)."),
    ] = None,
    *,
    grid: KernelsGrid,
    as_family: AsOption = None,
    models: ModelsOption = None,
    output: Output,
) -> None:
    """Time paged decode, prefill and KV store alone: GB/s and TFLOP/s next to what this machine can do."""
    from kvtool.machine.threads import bind_threads

    bind_threads(None, grid.device)

    from kvtool.bench.kernels.kernels import measure_kernels
    from kvtool.bench.kernels.options import default_model
    from kvtool.catalog.resolve import resolve_model
    from kvtool.report.files import check_writable
    from kvtool.report.kernels.kernels import print_kernels, write_kernels

    if output.out is not None:
        check_writable(output.out)
    check_named(as_family, model)
    name = default_model(grid.device) if model is None else model
    chosen = resolve_model(name, models_path=models, family=as_family)
    options = grid.options()
    with progress_bar() as progress:
        outcome = measure_kernels(chosen, options, progress=progress)
    notes, code = ending(outcome.errors, interrupted=outcome.interrupted, wrong=outcome.unequal)
    answer(outcome.document, output, show=print_kernels, write=write_kernels, notes=notes, code=code)
