"""Other engines next to ours: a table of times and ratios, who is ahead, who could not run, and columns for CSV."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from kvtool.report.bench.tables import DASH, heading, labels, p50, percent, varying
from kvtool.report.cases import case_rows
from kvtool.report.tables import Table
from kvtool.results import BenchPeer, Case, PeerTurn
from kvtool.units import format_length, format_ms

OURS = "kvtool"
NOTE = (
    "The same weights and prompts in turns, a batch at a time, in rounds of their own. / ours: its median time over "
    "ours, above 1 where ours is faster. same tokens: of its first two of every answer."
)
METRICS = (("first token", "ttft_ratio"), ("time per token", "tpot_ratio"))


def with_peers(cases: Sequence[Case]) -> list[Case]:
    return [case for case in cases if case.peers]


def engines_table(cases: Sequence[Case]) -> Table:
    """A row for ours and for every peer that was timed or said something else, case by case."""
    keys = varying(cases, ("input_len", "batch_size"))
    rows = []
    for case in cases:
        shown = [peer for peer in case.peers if peer.same_tokens is not None]
        rows += [(*labels(case, keys), *cells) for cells in (_ours(shown), *map(_theirs, shown)) if cells]
    columns = ("engine", "TTFT ms\np50", "/ ours", "TPOT ms\np50", "/ ours", "same\ntokens")
    return Table(
        title="Next to other engines",
        columns=(*(heading(key) for key in keys), *columns),
        rows=rows,
        labels=len(keys) + 1,
        note=" ".join([NOTE, *peer_lines(cases)]),
    )


def _ours(peers: Sequence[BenchPeer]) -> tuple[str, ...]:
    """Ours in the same rounds; nothing where nobody else was timed."""
    turns: list[PeerTurn] = next((peer.turns for peer in peers if peer.turns), [])
    if not turns:
        return ()
    tpots = [turn.ours_tpot_s for turn in turns if turn.ours_tpot_s is not None]
    ttft_ms = 1e3 * median(turn.ours_ttft_s for turn in turns)
    tpot_ms = 1e3 * median(tpots) if tpots else None
    return (OURS, format_ms(ttft_ms), "", format_ms(tpot_ms), "", "")


def _theirs(peer: BenchPeer) -> tuple[str, ...]:
    same = percent(peer.same_tokens)
    if not peer.turns:
        return (peer.name, DASH, DASH, DASH, DASH, f"WRONG {same}")
    return (peer.name, p50(peer.ttft_ms), ratio(peer.ttft_ratio), p50(peer.tpot_ms), ratio(peer.tpot_ratio), same)


def ratio(value: float | None) -> str:
    """Three digits, and an x."""
    return DASH if value is None else f"{value:.2f}x" if value < 10 else f"{value:.1f}x"


def peer_lines(cases: Sequence[Case]) -> list[str]:
    """Points where a peer is ahead, by name, or that none is; then what there is to know of each peer."""
    names = list(dict.fromkeys(peer.name for case in cases for peer in case.peers))
    timed = sum(any(peer.turns for peer in case.peers) for case in cases)
    lines = [line for name in names if (line := _ahead(cases, name))]
    if timed and not lines:
        lines.append(f"No engine is ahead of ours at any point ({timed} compared).")
    return lines + [line for name in names if (line := _told(cases, name))]


def _ahead(cases: Sequence[Case], name: str) -> str:
    """Where this peer's median time is the shorter one, and whether that is beyond chance."""
    points = []
    for case in cases:
        for peer in (peer for peer in case.peers if peer.name == name):
            for words, metric in METRICS:
                value = getattr(peer, metric)
                if value is not None and value < 1:
                    chance = "" if getattr(peer, f"{metric}_ci_high") < 1 else ", within chance"
                    points.append(f"{_point(case)}, {words} ({ratio(value)}{chance})")
    return f"{name} is ahead at {'; '.join(points)}." if points else ""


def _told(cases: Sequence[Case], name: str) -> str:
    """Its version and its notes, each once."""
    peers = [peer for case in cases for peer in case.peers if peer.name == name]
    version = next((f" {peer.version}" for peer in peers if peer.version), "")
    notes = "; ".join(dict.fromkeys(peer.note for peer in peers if peer.note))
    return f"{name}{version}{': ' if notes else ''}{notes}." if version or notes else ""


def _point(case: Case) -> str:
    """`4k x 8`."""
    length = case.inputs.get("input_len")
    return f"{format_length(length) if isinstance(length, int) else length} x {case.inputs.get('batch_size')}"


def peer_columns(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """What the CSV row of each case says of every peer, as `peers.vllm.tpot_ratio`; empty where the case has none."""
    names = list(dict.fromkeys(peer.name for case in cases for peer in case.peers))
    rows: list[dict[str, Any]] = [{} for _ in cases]
    for name in names:
        found = [next((p for p in case.peers if p.name == name), BenchPeer(name=name, version=None)) for case in cases]
        for row, columns in zip(rows, case_rows(found), strict=True):
            row |= {f"peers.{name}.{key}": value for key, value in columns.items() if key != "name"}
    return rows
