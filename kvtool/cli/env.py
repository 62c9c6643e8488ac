"""`kvtool env`: what this machine is, and with --measure what it can do."""

from __future__ import annotations

from typing import Annotated

import typer

from kvtool.cli.answer import answer
from kvtool.cli.flags.group import grouped
from kvtool.cli.flags.output import Tabled

EXAMPLES = "Examples:\n\n  kvtool env --measure\n\n  kvtool env --json --device cpu"


@grouped
def env(
    *,
    device: Annotated[str, typer.Option(help="auto (a GPU when there is one), cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="The dtype whose FLOP/s --measure takes: fp32, bf16 or fp16.")] = "bf16",
    measure: Annotated[bool, typer.Option("--measure", help="Measure bandwidth and FLOP/s too (about 4 s).")] = False,
    output: Tabled,
) -> None:
    """Show the versions, the processor and the GPU that a benchmark here would report."""
    from dataclasses import asdict

    from kvtool.machine.threads import bind_threads

    bind_threads(None, device)

    from kvtool.engine.pool import cache_dtype
    from kvtool.machine.device import resolve_device
    from kvtool.machine.environment import describe_environment
    from kvtool.machine.other_load import LoadMeter
    from kvtool.machine.roofline import measure_roofline
    from kvtool.report.machine.machine import print_environment
    from kvtool.results import EnvDocument
    from kvtool.sizing.dtypes import parse_float_dtype

    where, element = str(resolve_device(device)), cache_dtype(parse_float_dtype(dtype, "dtype"))
    load = LoadMeter()
    roofline = asdict(measure_roofline(where, element)) if measure else None
    other_load_cores = load.other_cores() if measure else None
    document = EnvDocument(
        environment=describe_environment(where, other_load_cores=other_load_cores), roofline=roofline
    )
    answer(document, output, show=print_environment)
