"""The `kvtool` program: its commands, and how their errors become one line and an exit code."""

from __future__ import annotations

import sys

import typer

from kvtool import __version__
from kvtool.cli import bench, compare, env, generate, gpus, kernels, models, replay, size, trace, verify
from kvtool.cli.help import Command
from kvtool.errors import KvtoolError

app = typer.Typer(
    name="kvtool",
    no_args_is_help=True,
    add_completion=False,
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
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """What the KV cache of a language model costs, how fast it can go, and what would make it cheaper."""


app.command(cls=Command, epilog=size.EXAMPLES)(size.size)
app.command(cls=Command, epilog=bench.EXAMPLES)(bench.bench)
app.command(cls=Command, epilog=compare.EXAMPLES)(compare.compare)
app.command(cls=Command, epilog=generate.EXAMPLES)(generate.generate)
app.command(cls=Command, epilog=kernels.EXAMPLES)(kernels.kernels)
app.command(cls=Command, epilog=replay.EXAMPLES)(replay.replay)
app.add_typer(trace.app, name="trace", epilog=trace.EXAMPLES)
app.command(cls=Command, epilog=verify.EXAMPLES)(verify.verify)
app.command(cls=Command, epilog=models.EXAMPLES)(models.models)
app.command(cls=Command, epilog=gpus.EXAMPLES)(gpus.gpus)
app.command(cls=Command, epilog=env.EXAMPLES)(env.env)


def main() -> None:
    """Run the program. Exit codes: 0 done, 1 the answer is no, 2 wrong use or input, 3 device or run, 130 Ctrl-C."""
    try:
        app()
    except KvtoolError as error:
        print(f"kvtool: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("kvtool: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away (`kvtool models | head`): not an error of ours.
        sys.stderr.close()
        sys.exit(0)
