"""Tiles of the attention kernels, a shape a case: each is kept as soon as it is found."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tools.gpu.cases import Case, Result, serve

CASE_S = 150.0


def cases(given: Namespace) -> Sequence[Case]:
    """The grid of `tools/tune.py`, the most served first."""
    from tools.tune import works

    return [
        Case(f"{work.model.id} {work.name}", partial(tuned, work, given.folder / given.piece), CASE_S)
        for work in works()
    ]


def tuned(work: object, folder: Path) -> Result:
    """Into the file of the card, where kernels look for it, and into the archive."""
    import msgspec

    from tools import tune

    card = tune.tuned([work], go_on=lambda: True)
    for place in (tune.CARDS, folder):
        tune.keep(card, place)
    found: dict[str, object] = msgspec.to_builtins(card)
    return found


if __name__ == "__main__":
    sys.exit(serve(cases))
