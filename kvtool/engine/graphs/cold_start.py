"""What happens once, before anything is at its speed: Triton compiles, and graphs are captured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class CompileTime:
    """Seconds that Triton spent compiling, or loading what it had compiled before; None on other backends."""

    def __init__(self, backend: str) -> None:
        self.seconds = 0.0 if backend == "triton" else None

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Adds what is compiled inside."""
        if self.seconds is None:
            yield
            return
        from triton import knobs

        before = knobs.compilation.listener
        knobs.compilation.listener = self._add
        try:
            yield
        finally:
            knobs.compilation.listener = before

    def apart_from(self, clock: Callable[[], float]) -> Callable[[], float]:
        """A clock that stands still while Triton compiles."""
        return lambda: clock() - (self.seconds or 0.0)

    def _add(self, *, times: Any, **_: object) -> None:
        assert self.seconds is not None
        self.seconds += times.total / 1e6  # Triton tells microseconds
