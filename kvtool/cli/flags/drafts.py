"""What drafts tokens ahead of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from kvtool.cli.flags.cache import STORED
from kvtool.cli.flags.group import Group


@dataclass(frozen=True)
class Drafts(Group):
    """Speculative decoding."""

    num_speculative_tokens: Annotated[
        int,
        typer.Option(help="Tokens drafted a step by the model's own draft layers (MTP).", rich_help_panel=STORED),
    ] = 0
