"""What Ctrl-C does: it ends the program at once with exit code 130, except in blocks that keep or tidy something."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_INTERRUPTED = 130


def leave_on_interrupt() -> None:
    """From here on Ctrl-C ends the process. An import cannot swallow it, as it can a KeyboardInterrupt.

    A shell that starts a program in the background has it ignore Ctrl-C, and it goes on doing so.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _leave)


def stay_until_the_end() -> None:
    """From here on Ctrl-C does nothing: all is said and written, and the exit code stands.

    The interpreter takes its handlers away before it ends, so that a Ctrl-C would kill it then without a word.
    """
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def interruptible() -> Iterator[None]:
    """A block in which Ctrl-C is a KeyboardInterrupt, for work that keeps what it has or takes files away again."""
    import threading

    before = signal.getsignal(signal.SIGINT)
    if before is not _leave or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _leave(number: int, frame: object) -> None:
    os.write(2, b"kvtool: interrupted\n")
    os._exit(EXIT_INTERRUPTED)
