"""`kvtool gpus`: the accelerators that --gpu takes, listed and searched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.cli.answer import answer
from kvtool.cli.flags.group import grouped
from kvtool.cli.flags.output import Tabled

if TYPE_CHECKING:
    from rich.console import Console

    from kvtool.catalog.gpus import Gpu
    from kvtool.report.tables import Table

EXAMPLES = "Examples:\n\n  kvtool gpus h100\n\n  kvtool gpus nvidia --json"


@grouped
def gpus(
    query: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WORD]...", help="All of which the name, vendor or architecture holds."),
    ] = None,
    *,
    output: Tabled,
) -> None:
    """List the cards that --gpu knows, with the figures it takes from them."""
    import msgspec

    rows = search(" ".join(query or ()))
    document = {"schema": "kvtool.gpus/1", "gpus": [msgspec.to_builtins(gpu) for gpu in rows]}
    answer(document, output, show=lambda document, console: show(rows, console))


def show(rows: list[Gpu], console: Console) -> None:
    """How many there are or what the one has; a line a card; of a single one its other facts too."""
    console.print(told(rows), style="bold", highlight=False, markup=False)
    console.print(overview(rows))
    if len(rows) == 1:
        console.print(details(rows[0]))


def told(rows: list[Gpu]) -> str:
    """The answer in a line: what a single card has, else how many there are and from how much memory to how much."""
    from kvtool.units import format_bytes

    least, *_, most = sorted([rows[0], *rows], key=lambda gpu: gpu.memory_bytes)
    if len(rows) == 1:
        rates = {"GB/s": most.memory_bandwidth_gbps, "bf16 TFLOP/s": most.bf16_tflops}
        known = [f"{_number(value)} {unit}" for unit, value in rates.items() if value is not None]
        return f"{most.name}: " + ", ".join([format_bytes(most.memory_bytes), *known]) + "."
    return f"{len(rows)} cards, {format_bytes(least.memory_bytes)} to {format_bytes(most.memory_bytes)}."


def search(query: str | None) -> list[Gpu]:
    """The cards that hold every word of `query`, or the one of that name; `local` is the one here. Raises KvtoolError
    where none does."""
    from kvtool.catalog.gpus import find_gpu, load_gpus
    from kvtool.machine.nvml import local_gpu

    if query is not None and query.strip().lower() == "local":
        return [local_gpu()]
    known = load_gpus()
    words = (query or "").lower().split()
    rows = [gpu for gpu in known if all(word in _text(gpu) for word in words)]
    return rows or [find_gpu(str(query))]


def _text(gpu: Gpu) -> str:
    return " ".join([gpu.name, *gpu.aliases, *gpu.driver_names, gpu.vendor, gpu.arch or ""]).lower()


def overview(rows: list[Gpu]) -> Table:
    from kvtool.report.tables import Table
    from kvtool.units import format_bytes

    cells = [
        (
            gpu.name,
            f"{'~' if gpu.memory_assumed else ''}{format_bytes(gpu.memory_bytes)}",
            _number(gpu.memory_bandwidth_gbps),
            _number(gpu.bf16_tflops),
            _number(gpu.fp8_tflops),
            _number(gpu.link_gbps),
        )
        for gpu in rows
    ]
    return Table(
        title="Cards",
        columns=("gpu", "memory", "GB/s", "bf16 TFLOP/s", "fp8 TFLOP/s", "link GB/s"),
        rows=cells,
        labels=1,
        spare=("link GB/s", "fp8 TFLOP/s"),
        note="Memory: what an engine is told; ~ from the card's size. Dense rates; links per direction.",
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.10g}"


def details(gpu: Gpu) -> Table:
    """One card's other facts, for a search that found just it."""
    from kvtool.report.tables import Table
    from kvtool.units import format_bytes

    units = None if gpu.compute_units is None else f"{gpu.compute_units} {gpu.compute_unit_kind}"
    facts = {
        "other names": ", ".join([*gpu.aliases, *gpu.driver_names]),
        "memory from": gpu.memory_source,
        "kept by the system": gpu.kept_bytes and format_bytes(gpu.kept_bytes),
        "vendor": gpu.vendor,
        "architecture": gpu.arch,
        "compute units": units,
        "L2 cache": gpu.l2_bytes and format_bytes(gpu.l2_bytes),
        "register file a unit": gpu.register_file_bytes and format_bytes(gpu.register_file_bytes),
        "PCIe": gpu.pcie_gbps and f"{_number(gpu.pcie_gbps)} GB/s per direction",
        "source": gpu.source,
        "confidence": gpu.confidence,
        "notes": gpu.notes,
    }
    return Table(
        title="Facts", columns=("", ""), rows=[(name, str(value)) for name, value in facts.items() if value], labels=2
    )
