"""A text through the reference's cache and others, window by window."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvtool.bench.accuracy.methods import Method, held_bytes
from kvtool.bench.accuracy.tokens import Moved, moved


@dataclass(frozen=True, slots=True)
class Read:
    """By one method: what moved in each window, and the bytes that its cache held of the first."""

    moved: list[Moved]
    held: int


def read_windows(
    reference: Method,
    methods: Sequence[Method],
    windows: Sequence[list[int]],
    goes_on: Callable[[list[list[Moved]], float], bool],
    clock: Callable[[], float] = time.monotonic,
) -> list[Read]:
    """By method, of the first window and of each that `goes_on` asks for: told what moved so far, by method, and the
    seconds that the last window took."""
    found: list[list[Moved]] = [[] for _ in methods]
    held: list[int] = []
    took_s = 0.0
    for window in windows:
        if held and not goes_on(found, took_s):
            break
        start_s = clock()
        expected = reference.logits(window, reference.layers(len(window)))
        for own, each in zip(found, methods, strict=True):
            layers = each.layers(len(window))
            own.append(moved(expected, each.logits(window, layers), window))
            if len(held) < len(methods):
                held.append(held_bytes(layers if each.step_tokens else each.held(len(window))))
        took_s = clock() - start_s
    return [Read(own, size) for own, size in zip(found, held, strict=True)]
