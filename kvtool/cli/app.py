"""The `kvtool` program: its commands, and how their errors become one line and an exit code."""

from __future__ import annotations

import sys
from collections import UserDict
from importlib import import_module
from types import ModuleType
from typing import Any

import typer
import typer.main
from typer.core import TyperGroup

from kvtool import __version__
from kvtool.cli.endings import CarriedError, ending_of
from kvtool.cli.help import Command, leave_as_typed
from kvtool.system.printable import use_encodable_output

COMMANDS = {
    "size": "size",
    "bench": "bench",
    "compare": "compare",
    "generate": "generate",
    "kernels": "kernels",
    "replay": "replay",
    "trace": "trace",
    "tiers": "tiers",
    "verify": "verify",
    "advise": "advise",
    "models": "lookups.models",
    "gpus": "lookups.gpus",
    "env": "env",
}
"""Modules of kvtool.cli by the name of their command."""


class Commands(UserDict[str, Any]):
    """Commands by name, each imported and built when it is asked for: to run one takes no other."""

    def __getitem__(self, name: str) -> Any:
        if isinstance(self.data[name], str):
            self.data[name] = _built(name, import_module(f"kvtool.cli.{self.data[name]}"))
        return self.data[name]


def _built(name: str, module: ModuleType) -> Any:
    """The command of a module: its `app` where it has commands of its own, else its function of that name."""
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False)
        app.command(name, cls=Command, epilog=module.EXAMPLES)(getattr(module, name))
    return typer.main.get_command(app)


class Program(TyperGroup):
    """All commands. Typer would end with exit code 1, which means "no", where nobody reads a pipe any more."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**{**given, "commands": Commands(COMMANDS)})

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        leave_as_typed(self.get_params(ctx))
        return list(super().parse_args(ctx, args))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (BrokenPipeError, EOFError, KeyboardInterrupt) as error:
            raise CarriedError from error


app = typer.Typer(
    name="kvtool",
    cls=Program,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"kvtool {__version__}")
        raise typer.Exit


@app.callback()
def kvtool(
    version: bool = typer.Option(False, "--version", "-V", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """What the KV cache of a language model costs, how fast it can go, and what would make it cheaper."""


def main() -> None:
    """Run the program, and exit.

    0 done, 1 the answer is no, 2 wrong use or input, 3 device or run, 70 a fault of kvtool's own, 130 Ctrl-C.
    """
    try:
        use_encodable_output()
        code = app(prog_name="kvtool", standalone_mode=False) or 0
        sys.stdout.flush()
    except BaseException as error:
        code = ending_of(error)
    sys.exit(code)
