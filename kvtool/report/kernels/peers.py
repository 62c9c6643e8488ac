"""Other libraries' kernels next to ours: how their times compare, and the points at which one is ahead."""

from __future__ import annotations

from collections.abc import Sequence

from kvtool.report.cells import DASH, input_cell, ratio
from kvtool.report.inputs import varying_inputs
from kvtool.report.peers import find_peer, lead, peer_lines
from kvtool.results import KernelCase

DIFFERENT = "WRONG"
POINT_KEYS = ("layer", "kv_cache_dtype", "block_size")


def ratio_cell(case: KernelCase, name: str) -> str:
    """Its time over ours as 1.25x, WRONG where its output was another, a dash where it has no time."""
    peer = find_peer(case.peers, name)
    if peer is None or peer.ratio is None:
        return DIFFERENT if peer is not None and peer.outputs_equal is False else DASH
    return ratio(peer.ratio)


def library_lines(cases: Sequence[KernelCase]) -> list[str]:
    """Who is ahead where, and what there is to know of each library."""
    timed = [case for case in cases if is_timed(case)]
    return peer_lines(cases, timed=is_timed, leads=lambda case, name: _leads(case, name, timed))


def is_timed(case: KernelCase, name: str | None = None) -> bool:
    """Whether the peer of that name, or any, has a time beside the case."""
    return any(peer.ratio is not None for peer in case.peers if name in (None, peer.name))


def _leads(case: KernelCase, name: str, among: Sequence[KernelCase]) -> list[str]:
    """The case, where this peer's median time is shorter than ours."""
    peer = find_peer(case.peers, name)
    if peer is None or peer.ratio is None or peer.ratio >= 1:
        return []
    return [lead(point(case, among), peer.ratio, peer.ratio_ci_low, peer.ratio_ci_high)]


def point(case: KernelCase, among: Sequence[KernelCase]) -> str:
    """`decode 4k x 8`: a case in few words, told from those beside it."""
    part = "decode" if "decode" in case.kernel else "prefill"
    told = [input_cell(key, case.inputs[key]) for key in (*varying_inputs(among, POINT_KEYS), "context")]
    return " ".join([part, *told, f"x {case.inputs['batch_size']}"])
