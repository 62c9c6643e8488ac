"""How every command ends: its document is printed or encoded, then written, and the exit code says what came out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from kvtool.cli.flags.output import Output, Printed, Tabled
from kvtool.system.errors import visible

if TYPE_CHECKING:
    from rich.console import Console

    from kvtool.report.terminal import Terminal
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
    """Print the document with `show` or as JSON and the notes on standard error, then write the files of --out.

    Exits with `code` where it is not 0. A pipe that nobody reads keeps no file from being written. Raises KvtoolError
    for a folder that cannot be made, and, when all is printed, for files that cannot be written.
    """
    from kvtool.report.files import check_writable

    out = output.out if write is not None and isinstance(output, Output) else None
    if out is not None:
        check_writable(out)

    try:
        _print(document, show, notes, json=output.json, markdown=isinstance(output, Tabled) and output.format == "md")
    finally:
        if write is not None and out is not None:
            write(document, out)
    if code:
        raise typer.Exit(code)


def _print(
    document: Document, show: Callable[[Document, Console], None], notes: Iterable[str], *, json: bool, markdown: bool
) -> None:
    from kvtool.results import encode

    if json:
        typer.echo(encode(document), nl=False)
    else:
        console = _console(markdown)
        show(document, console)
        console.close()
    sys.stdout.flush()
    for note in notes:
        typer.echo(visible(note), err=True)


def _console(markdown: bool) -> Terminal:
    from kvtool.report.terminal import Terminal

    if not markdown:
        return Terminal()
    from kvtool.report.markdown import Markdown

    return Markdown()


def ending(errors: Sequence[str], *, interrupted: bool, wrong: Sequence[str] = ()) -> tuple[list[str], int]:
    """What a measurement tells beside its document, and its exit code: `wrong` are checks that failed."""
    notes = [f"kvtool: {line}" for line in (*errors, *wrong)]
    if interrupted:
        return [*notes, "kvtool: interrupted; the cases that were done are kept"], 130
    return notes, 3 if errors else 1 if wrong else 0
