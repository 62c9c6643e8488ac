"""The `kvtool` program: its commands, and how their errors become one line and an exit code."""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from kvtool import __version__
from kvtool.cli import advise, bench, compare, env, generate, kernels, replay, size, tiers, trace, verify
from kvtool.cli.endings import CarriedError, ending_of
from kvtool.cli.help import Command
from kvtool.cli.lookups import gpus, models
from kvtool.system.printable import use_encodable_output


class Program(TyperGroup):
    """All commands. Typer would end with exit code 1, which means "no", where nobody reads a pipe any more."""

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


app.command(cls=Command, epilog=size.EXAMPLES)(size.size)
app.command(cls=Command, epilog=bench.EXAMPLES)(bench.bench)
app.command(cls=Command, epilog=compare.EXAMPLES)(compare.compare)
app.command(cls=Command, epilog=generate.EXAMPLES)(generate.generate)
app.command(cls=Command, epilog=kernels.EXAMPLES)(kernels.kernels)
app.command(cls=Command, epilog=replay.EXAMPLES)(replay.replay)
app.add_typer(trace.app, name="trace", epilog=trace.EXAMPLES)
app.command(cls=Command, epilog=tiers.EXAMPLES)(tiers.tiers)
app.command(cls=Command, epilog=verify.EXAMPLES)(verify.verify)
app.command(cls=Command, epilog=advise.EXAMPLES)(advise.advise)
app.command(cls=Command, epilog=models.EXAMPLES)(models.models)
app.command(cls=Command, epilog=gpus.EXAMPLES)(gpus.gpus)
app.command(cls=Command, epilog=env.EXAMPLES)(env.env)


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
