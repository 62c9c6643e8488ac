"""`kvtool env`: what this machine is, and with --measure what it can do."""

from __future__ import annotations

import typer

EXAMPLES = "Examples:\n\n  kvtool env --measure\n\n  kvtool env --json --device cpu"


def env(
    device: str = typer.Option("auto", help="auto (a GPU when there is one), cpu, cuda or cuda:N."),
    dtype: str = typer.Option("bf16", help="The dtype whose FLOP/s --measure takes: fp32, bf16 or fp16."),
    measure: bool = typer.Option(False, "--measure", help="Measure bandwidth and FLOP/s too (about 4 s)."),
    json: bool = typer.Option(False, "--json", help="Print one JSON document on stdout and nothing else."),
) -> None:
    """Show the versions, the processor and the GPU that a benchmark here would report."""
    from dataclasses import asdict

    from kvtool.engine.pool import cache_dtype
    from kvtool.machine.device import resolve_device
    from kvtool.machine.environment import describe_environment
    from kvtool.machine.other_load import LoadMeter
    from kvtool.machine.roofline import measure_roofline
    from kvtool.report.machine import print_environment
    from kvtool.report.terminal import Terminal
    from kvtool.results import EnvDocument, encode
    from kvtool.sizing.dtypes import parse_float_dtype

    where, element = str(resolve_device(device)), cache_dtype(parse_float_dtype(dtype, "dtype"))
    load = LoadMeter()
    roofline = asdict(measure_roofline(where, element)) if measure else None
    other_load_cores = load.other_cores() if measure else None
    document = EnvDocument(
        environment=describe_environment(where, other_load_cores=other_load_cores), roofline=roofline
    )
    if json:
        typer.echo(encode(document), nl=False)
    else:
        print_environment(document, Terminal())
