"""When kernels may take the time to find out which of several equal ways is the fastest: while somebody prepares.

Outside, a request would wait for it: then what is known already is taken, or the safest way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_may_time: ContextVar[bool] = ContextVar("ways may be timed", default=False)


@contextmanager
def choosing() -> Iterator[None]:
    """Inside, kernels may time their ways."""
    token = _may_time.set(True)
    try:
        yield
    finally:
        _may_time.reset(token)


def may_time() -> bool:
    """Whether this is inside of `choosing`."""
    return _may_time.get()
