"""Where a result goes, and which catalogue names models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from kvtool.cli.flags.group import Group

ModelsOption = Annotated[
    Path | None,
    typer.Option("--models", metavar="FILE", help="A catalogue to use instead of kvtool's own models.yaml."),
]
ExplainOption = Annotated[
    bool, typer.Option("--explain", help="Print every note, and of a size every formula with the numbers put in.")
]


@dataclass(frozen=True)
class Printed(Group):
    """Of a command that prints its document."""

    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")] = False


@dataclass(frozen=True)
class Tabled(Printed):
    """Of a command whose document is shown in tables."""

    format: Annotated[Literal["text", "md"], typer.Option(help="How tables are printed: text, or md for Markdown.")] = (
        "text"
    )


@dataclass(frozen=True)
class Output(Tabled):
    """Of a command that can also write its document."""

    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write the result as .json, .csv and .png into DIR.")
    ] = None
