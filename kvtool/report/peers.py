"""Other libraries and engines next to ours: who was raced, who is ahead where, what there is to know of each, CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from kvtool.report.cells import ratio
from kvtool.report.rows import case_rows


class Peer(Protocol):
    """One other library or engine beside a case; `note` says why there is no time, or what to know of it."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str | None: ...
    @property
    def note(self) -> str: ...


class Raced(Protocol):
    """A case of any document that may have peers."""

    @property
    def peers(self) -> Sequence[Peer]: ...


P = TypeVar("P", bound=Peer)
R = TypeVar("R", bound=Raced)


def with_peers(cases: Sequence[R]) -> list[R]:
    """The cases beside which a peer was asked for."""
    return [case for case in cases if case.peers]


def peer_names(cases: Sequence[Raced]) -> list[str]:
    """Every peer once, in order."""
    return list(dict.fromkeys(peer.name for case in cases for peer in case.peers))


def find_peer(peers: Sequence[P], name: str) -> P | None:
    """The one of that name."""
    return next((peer for peer in peers if peer.name == name), None)


def lead(where: str, value: float, low: float | None, high: float | None) -> str:
    """A point where a peer takes `value` < 1 times as long as ours, and whether that is within chance."""
    low, high = low or 0.0, high or 0.0
    chance = "" if high < 1 else f", within chance: {ratio(low)} to {ratio(high)}"
    return f"{where} ({ratio(value)}{chance})"


def peer_lines(
    cases: Sequence[R], *, timed: Callable[[R, str | None], bool], leads: Callable[[R, str], list[str]]
) -> list[str]:
    """Points where a peer is ahead, by name, or that none of those that ran is; then what there is to know of each.

    `timed` says whether a peer of a case has a time, or any of them where no name is given; `leads` names the points of
    a case where a peer is ahead.
    """
    names = peer_names(cases)
    points = {name: [point for case in cases for point in leads(case, name)] for name in names}
    lines = [f"{name} is ahead at {'; '.join(where)}." for name, where in points.items() if where]
    count = sum(timed(case, None) for case in cases)
    if count and not lines:
        ran = [name for name in names if any(timed(case, name) for case in cases)]
        lines.append(f"{', '.join(ran)}: not ahead of ours at any point ({count} compared).")
    return lines + [line for name in names for line in _told(cases, name)]


def _told(cases: Sequence[Raced], name: str) -> list[str]:
    """Its version, and each of its notes once, with the number of points that have it where not all do."""
    peers = [peer for case in cases if (peer := find_peer(case.peers, name)) is not None]
    version = next((f" {peer.version}" for peer in peers if peer.version), "")
    lines = []
    for note in dict.fromkeys(peer.note for peer in peers if peer.note):
        having = sum(peer.note == note for peer in peers)
        where = "" if having == len(peers) else f" (at {having} of {len(peers)} points)"
        lines.append(f"{name}{version}: {note}{where}.")
    return lines or ([f"{name}{version}."] if version else [])


def peer_columns(cases: Sequence[Raced], absent: Callable[[str], Peer]) -> list[dict[str, Any]]:
    """What the CSV row of each case says of every peer, as `peers.vllm.ratio`; `absent` makes an empty one of a name
    for a case that has none."""
    rows: list[dict[str, Any]] = [{} for _ in cases]
    for name in peer_names(cases):
        peers: list[Any] = [find_peer(case.peers, name) or absent(name) for case in cases]
        for row, columns in zip(rows, case_rows(peers), strict=True):
            row |= {f"peers.{name}.{key}": value for key, value in columns.items() if key != "name"}
    return rows
