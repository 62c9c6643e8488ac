"""Several traces side by side: a table of all, then each with what it says alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kvtool.report.files import csv_bytes
from kvtool.report.replay.replay import flat, print_replay, write_replay
from kvtool.report.replay.sentences import capacity_words
from kvtool.report.tables import Table
from kvtool.results import ReplayDocument, ReplaySweep, encode
from kvtool.system.files import write_all

if TYPE_CHECKING:
    from rich.console import Console


def print_sweep(sweep: ReplaySweep, console: Console) -> None:
    """All rows in one table, then trace by trace."""
    console.print(sweep_table(sweep))
    for document in sweep.replays:
        print_replay(document, console)


def sweep_table(sweep: ReplaySweep) -> Table:
    """A row a trace, policy and capacity."""
    return Table(
        title=f"Hits of a prefix cache, {len(sweep.replays)} traces",
        columns=("trace", "policy", "capacity", "% of\nblocks", "% of\ntokens", "content\n%", "limited\nby"),
        rows=[
            (
                document.trace.name,
                row.policy,
                capacity_words(row),
                f"{100 * row.block_hit_ratio:.2f}",
                f"{100 * row.token_hit_ratio:.2f}",
                f"{100 * row.ceiling_content:.2f}",
                row.limited_by,
            )
            for document in sweep.replays
            for row in document.rows
        ],
        labels=3,
    )


def write_sweep(sweep: ReplaySweep, directory: Path, *, command: str = "") -> list[Path]:
    """replay.json and .csv of all in `directory`, and a folder for each trace with what it has alone. Raises
    KvtoolError.
    """
    rows = [{"trace": document.trace.name, **flat(row)} for document in sweep.replays for row in document.rows]
    files = {directory / "replay.json": encode(sweep), directory / "replay.csv": csv_bytes(rows)}
    write_all(files)
    written = list(files)
    for name, document in _folders(sweep):
        written += write_replay(document, directory / name, command=command)
    return written


def _folders(sweep: ReplaySweep) -> Iterator[tuple[str, ReplayDocument]]:
    """Named after the traces, numbered where two have one name."""
    stems = [document.trace.name.partition(".")[0] or "trace" for document in sweep.replays]
    for place, (stem, document) in enumerate(zip(stems, sweep.replays, strict=True)):
        earlier = stems[:place].count(stem)
        yield (f"{stem}-{earlier + 1}" if earlier else stem), document
