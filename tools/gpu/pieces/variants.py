"""Other ways to launch the same kernels, for what no card has shown to be right yet: measured beside, or instead where
the usual way fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from tools.gpu.cases import Case, LacksError, Result
from tools.gpu.journal import DONE, Journal

if TYPE_CHECKING:
    from kvtool.kernels.triton.tiles.rules import Shape, Tile

Measure = Callable[[], Result]


@contextmanager
def pointers() -> Iterator[None]:
    """Launches inside load by pointers, whatever the rules say of TMA."""
    from kvtool.kernels.triton.arguments import Keys

    with patch.object(Keys, "_by_descriptor", lambda self, tile, target: False):
        yield


@contextmanager
def in_order() -> Iterator[None]:
    """Launches inside begin when the one in front of them is over."""
    from kvtool.kernels.triton.gpu import in_turn

    with in_turn():
        yield


@dataclass(frozen=True)
class Besides:
    """Tiles of the rules with one of their settings on."""

    setting: str

    def get(self, shape: Shape, rule: Tile, /) -> Tile:
        """The rules' own, but for that."""
        return replace(rule, **{self.setting: True})


@contextmanager
def tiles_with(setting: str) -> Iterator[None]:
    """Launches inside take tiles of the rules with this setting on."""
    from kvtool.kernels.triton.gpu import trying

    with trying(Besides(setting)):
        yield


WAYS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "by pointers": pointers,
    "in order": in_order,
    "by integers": partial(tiles_with, "integers"),
}


def beside(way: str, case: Case, journal: Journal) -> Case:
    """The same in another way, whether or not the usual one went well."""
    return Case(f"{case.name} {way}", partial(measured, way, case, journal), case.limit_s)


def instead(way: str, case: Case, journal: Journal) -> Case:
    """The same in another way where the usual one went wrong, and else nothing."""

    def run() -> Result:
        if went_well(case, journal):
            raise LacksError(f"a reason: {case.name} went well")
        return measured(way, case, journal)

    return Case(f"{case.name} {way}", run, case.limit_s)


def measured(way: str, case: Case, journal: Journal) -> Result:
    """A document in the place of the usual one where that has none, and says so; else one that no target looks at."""
    with WAYS[way]():
        document: dict[str, Any] = case.run() or {}
    if went_well(case, journal):
        return {"variant": way, "document": document}
    said = [f"launched {way}, since the usual way went wrong on this card", *document.get("assumptions", [])]
    return document | {"assumptions": said}


def went_well(case: Case, journal: Journal) -> bool:
    """Whether the usual way did."""
    event = journal.ended().get(case.name)
    return event is not None and event.state == DONE
