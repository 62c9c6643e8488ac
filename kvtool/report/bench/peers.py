"""Other engines next to ours: a table of times and ratios, and the points at which one is ahead."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from kvtool.report.bench.cases import heading, labels, varying
from kvtool.report.cells import DASH, input_cell, p50, percent, ratio
from kvtool.report.peers import find_peer, lead, peer_lines
from kvtool.report.tables import Table
from kvtool.results import BenchPeer, Case, PeerTurn
from kvtool.units import format_ms

OURS = "kvtool"
NOTE = (
    "The same weights and prompts in turns, a batch at a time, in rounds of their own. / ours: its median time over "
    "ours, above 1 where ours is faster. same tokens: of its first two of every answer."
)


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
        note=" ".join([NOTE, *engine_lines(cases)]),
    )


def engine_lines(cases: Sequence[Case]) -> list[str]:
    """Who is ahead where, and what there is to know of each engine."""
    return peer_lines(cases, timed=_timed, leads=_leads)


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


def _timed(case: Case, name: str | None) -> bool:
    return any(peer.turns for peer in case.peers if name in (None, peer.name))


def _leads(case: Case, name: str) -> list[str]:
    """Which of this peer's median times are shorter than ours: `4k x 8, first token (0.95x)`."""
    peer = find_peer(case.peers, name)
    if peer is None:
        return []
    where = f"{input_cell('input_len', case.inputs.get('input_len'))} x {case.inputs.get('batch_size')}"
    first = (f"{where}, first token", peer.ttft_ratio, peer.ttft_ratio_ci_low, peer.ttft_ratio_ci_high)
    later = (f"{where}, time per token", peer.tpot_ratio, peer.tpot_ratio_ci_low, peer.tpot_ratio_ci_high)
    return [
        lead(words, value, low, high) for words, value, low, high in (first, later) if value is not None and value < 1
    ]
