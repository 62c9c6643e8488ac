"""The command line: one file per command. Each parses, calls one function and prints; the work is elsewhere."""

from kvtool.cli.app import main

__all__ = ["main"]
