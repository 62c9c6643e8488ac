"""How traces are made, and how logs with text are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.cli.flags.group import Group
from kvtool.cli.values import optional_length

if TYPE_CHECKING:
    from kvtool.replay.misses.logged import Reading
    from kvtool.workloads.making.options import Making


@dataclass(frozen=True)
class Made(Group):
    """What is made."""

    num_sessions: Annotated[int, typer.Option(help="Agents, conversations, users or single requests.")] = 100
    block_size: Annotated[int, typer.Option(help="Tokens a block.")] = 64
    turns: Annotated[int | None, typer.Option(help="Mean turns (multi-turn).")] = None
    input_len: Annotated[str | None, typer.Option(metavar="LENGTH", help="Mean tokens of a prompt of one's own.")] = (
        None
    )
    output_len: Annotated[str | None, typer.Option(metavar="LENGTH", help="Mean tokens of an answer.")] = None
    prefix_len: Annotated[str | None, typer.Option(metavar="LENGTH", help="Tokens that prompts share.")] = None
    max_len: Annotated[str | None, typer.Option(metavar="LENGTH", help="Longest trajectory (agents).")] = None
    prefixes: Annotated[int | None, typer.Option(help="Prefixes, or whole prompts, to choose from.")] = None
    zipf: Annotated[float | None, typer.Option(help="The k-th of them is chosen with weight 1 / k^ZIPF.")] = None
    items: Annotated[int | None, typer.Option(help="Items that each user's history stands before (ranking).")] = None
    think_time: Annotated[
        float | None, typer.Option(metavar="S", help="Mean seconds before a session's next turn.")
    ] = None
    request_rate: Annotated[float | None, typer.Option(help="Sessions per second (default: all begin at once).")] = None
    burstiness: Annotated[float, typer.Option(help="1: a Poisson process; below 1: in bursts.")] = 1.0
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0

    def options(self, kind: str) -> Making:
        """Raises KvtoolError for what is none."""
        from kvtool.workloads.making.options import Making

        return Making(
            kind=kind,
            num_sessions=self.num_sessions,
            block_size=self.block_size,
            turns=self.turns,
            input_len=optional_length(self.input_len, "input len"),
            output_len=optional_length(self.output_len, "output len"),
            prefix_len=0 if self.prefix_len == "0" else optional_length(self.prefix_len, "prefix len"),
            max_len=optional_length(self.max_len, "max len"),
            prefixes=self.prefixes,
            zipf=self.zipf,
            items=self.items,
            think_s=self.think_time,
            request_rate=self.request_rate,
            burstiness=self.burstiness,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Tokenized(Group):
    """How text becomes tokens."""

    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The model's tokenizer.json, and its chat template for chats."),
    ] = None

    def reading(self, *, chats: bool) -> Reading:
        """How prompts are laid out and counted; `chats` need the model's template where a tokenizer is named.

        Raises KvtoolError for a folder without a tokenizer, and for one without a template where there are chats.
        """
        from kvtool.replay.misses.logged import Reading
        from kvtool.workloads.logs.layout import plain_layout, template_layout

        if self.tokenizer is None:
            return Reading(plain_layout)
        from kvtool.engine.text import FileTokenizer

        tokenizer = FileTokenizer(self.tokenizer / "tokenizer.json")
        layout = template_layout(self.tokenizer) if chats else plain_layout
        return Reading(layout, encode=tokenizer.encode, decode=tokenizer.decode)
