"""The command line: one file per command. Each parses, calls one function and prints; the work is elsewhere."""

from kvtool.cli import size
from kvtool.cli.app import app, main

app.command(epilog=size.EPILOG)(size.size)

__all__ = ["main"]
