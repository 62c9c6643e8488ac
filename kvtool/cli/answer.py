"""How every command ends: its document is written, printed or encoded, and the exit code says what came out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from kvtool.cli.flags.output import Output, Printed

if TYPE_CHECKING:
    from rich.console import Console

    from kvtool.results import Struct

Document = TypeVar("Document", bound="Struct | dict[str, Any]")


def answer(
    document: Document,
    output: Printed,
    *,
    show: Callable[[Document, Console], None],
    write: Callable[[Document, Path], object] | None = None,
    notes: Iterable[str] = (),
    code: int = 0,
) -> None:
    """Write the files of --out, print the document with `show` or as JSON, and the notes on standard error.

    Exits with `code` where it is not 0. Raises KvtoolError for a folder that cannot be written.
    """
    from kvtool.report.terminal import Terminal
    from kvtool.results import encode

    if write is not None and isinstance(output, Output) and output.out is not None:
        write(document, output.out)
    if output.json:
        typer.echo(encode(document), nl=False)
    else:
        show(document, Terminal())
    for note in notes:
        typer.echo(note, err=True)
    if code:
        raise typer.Exit(code)


def ending(errors: Sequence[str], *, interrupted: bool, wrong: Sequence[str] = ()) -> tuple[list[str], int]:
    """What a measurement tells beside its document, and its exit code: `wrong` are checks that failed."""
    notes = [f"kvtool: {line}" for line in (*errors, *wrong)]
    if interrupted:
        return [*notes, "kvtool: interrupted; the cases that were done are kept"], 130
    return notes, 3 if errors else 1 if wrong else 0
