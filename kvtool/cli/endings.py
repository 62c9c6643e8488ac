"""How the program ends when it does not end well: one line on standard error, and the exit code."""

from __future__ import annotations

import os
import sys
import traceback

import typer

from kvtool.system.errors import DeviceError, KvtoolError, one_line
from kvtool.system.interrupts import EXIT_INTERRUPTED

EXIT_FAULT = 70  # EX_SOFTWARE of sysexits.h
_CLICK_ERROR = typer.BadParameter.__mro__[2]  # ClickException, of click or of the copy that newer typers carry
_NO_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc", "cannot allocate memory", "out of memory")


class CarriedError(Exception):
    """Carries its cause past typer, which would end the program in a way of its own."""


def ending_of(error: BaseException) -> int:
    """Say in one line what ended the program, and return its exit code."""
    if isinstance(error, CarriedError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0 if error.code is None else EXIT_FAULT
    if isinstance(error, BrokenPipeError):  # `kvtool models | head`: no error of ours
        _close_output()
        return 0
    if isinstance(error, KeyboardInterrupt):
        _say("interrupted")
        return EXIT_INTERRUPTED
    if os.environ.get("KVTOOL_TRACEBACK") == "1":
        traceback.print_exception(error)
    known = _known(error)
    if known is not None:
        _say(str(known))
        return known.exit_code
    told = f"{type(error).__name__}: {error}".removesuffix(": ")
    _say(f"a fault of kvtool's own, {told} (KVTOOL_TRACEBACK=1 tells where)")
    return EXIT_FAULT


def _known(error: BaseException) -> KvtoolError | None:
    """The error as one that a user can mend; None for a fault of ours."""
    if isinstance(error, KvtoolError):
        return error
    if isinstance(error, _CLICK_ERROR):
        return _wrong_use(error)
    if isinstance(error, typer.Abort):
        return KvtoolError("standard input ended before it was answered")
    if isinstance(error, MemoryError) or any(text in str(error).lower() for text in _NO_MEMORY):
        return DeviceError(f"out of memory: {str(error) or 'this process may have no more'}")
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("kvtool"):
        return KvtoolError(f"this needs the package {error.name.partition('.')[0]}, which is not installed")
    if isinstance(error, OSError):
        _close_output()
        return KvtoolError(f"cannot read or write {error.filename or 'standard output'}: {error.strerror or error}")
    return None


def _wrong_use(error: BaseException) -> KvtoolError:
    """What typer says of the options, with the command whose --help tells more."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "kvtool"
    told = error.format_message() if hasattr(error, "format_message") else str(error)
    return KvtoolError(f"{told.rstrip('.')} (see {command} --help)")


def _say(text: str) -> None:
    try:
        print(one_line(f"kvtool: {text}"), file=sys.stderr, flush=True)
    except OSError:  # nobody hears it
        return


def _close_output() -> None:
    """What is still to be flushed goes nowhere: the interpreter would complain of it again when it ends."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # not a real file
        return
