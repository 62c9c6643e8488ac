"""The options of every command and what they are where they are not given, held against the list in options.txt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from kvtool.cli.app import app


def leaves(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with its words, as `trace check`."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


COMMANDS = dict(leaves(typer.main.get_group(app)))
LIST = Path(__file__).with_name("options.txt")
ARGUMENTS = {
    "advise": ["a-model"],
    "compare": ["a", "b"],
    "verify": ["a.log"],
    "replay": ["a.jsonl"],
    "trace check": ["a.jsonl"],
    "trace make": ["agents", "a.jsonl"],
    "trace import": ["a.jsonl", "b.jsonl"],
    "trace misses": ["a.jsonl"],
}


def listed() -> dict[str, list[str]]:
    """The lines of options.txt under each command's name, as `--tp = 1`."""
    blocks = (block.splitlines() for block in LIST.read_text().strip().split("\n\n"))
    return {name: sorted(lines) for name, *lines in blocks}


def parsed(name: str) -> list[str]:
    """The same of the command, as it parses a line without options."""
    command = COMMANDS[name]
    values = command.make_context(name, [*ARGUMENTS.get(name, [])]).params
    return sorted(
        f"{'/'.join([*parameter.opts, *parameter.secondary_opts])} = {values[str(parameter.name)]!r}"
        for parameter in command.params
        if parameter.opts[0].startswith("-")
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_the_options_of_the_list(name: str) -> None:
    assert parsed(name) == listed()[name]


def test_the_list_has_no_other_command() -> None:
    assert listed().keys() == COMMANDS.keys()
