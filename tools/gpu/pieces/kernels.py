"""The kernels that targets are of, one call a case: ours by TMA and by pointers, or beside other libraries."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial

from kvtool.bench.peers import KERNEL_PEERS
from tools.gpu.cases import Case, Result, serve
from tools.gpu.journal import Journal
from tools.gpu.pieces.measuring import Grid, kernel_document, measured_ceiling
from tools.gpu.pieces.variants import beside, instead
from tools.gpu.store import Store

K = 1024
LLAMA = "llama-3.1-8b"
MLA = (Grid("deepseek-v2-lite", "decode", 8 * K, 32), Grid("deepseek-v3", "decode", 8 * K, 32))
MOST = (Grid(LLAMA, "decode", 4 * K, 32), Grid(LLAMA, "decode", K), Grid(LLAMA, "decode", 32 * K))
LONG_PREFILL = Grid(LLAMA, "prefill", 8 * K, query_len=8 * K)
FP8 = Grid(LLAMA, "decode", 4 * K, 32, "fp8")
TARGETS = (
    *(*MOST, LONG_PREFILL, FP8, *MLA),
    Grid(LLAMA, "decode", 8 * K, 16),
    Grid(LLAMA, "decode", 16 * K, 8),
    Grid(LLAMA, "prefill", 16 * K, query_len=16 * K),
    Grid(LLAMA, "decode", 128 * K),
    Grid(LLAMA, "prefill", 16 * K, query_len=2 * K),
    Grid(LLAMA, "decode", 4 * K),
)
BY_POINTERS = (MOST[0], MOST[2], LONG_PREFILL, FP8)
PEERED = (MOST[0], LONG_PREFILL, MOST[2], MOST[1], Grid(LLAMA, "decode", 16 * K, 8), Grid(LLAMA, "decode", K, 32))
ALL_PEERED = (*PEERED, FP8, *MLA, Grid(LLAMA, "prefill", 16 * K, query_len=2 * K), Grid(LLAMA, "decode", 128 * K))
TORCHS = ("sdpa", "cudnn")  # attention that is there wherever torch is
LIMITS = "limits"
NUM_ITERS = 15


def cases(given: Namespace) -> Sequence[Case]:
    """By the word: none for the targets, `peers` for torch's own, `all-peers` for whatever can be imported."""
    store = Store(given.folder, given.spare)
    measure = partial(kernel_document, store, num_iters=NUM_ITERS)
    limits = Case(LIMITS, lambda: measured_ceiling(store) and None)
    if not given.words:
        return [limits, *of_targets(measure, Journal(store, given.piece))]
    names, grids = (TORCHS, PEERED) if given.words == ["peers"] else (KERNEL_PEERS, ALL_PEERED)
    peers = tuple(name for name in names if name in KERNEL_PEERS)
    raced = partial(kernel_document, store, num_iters=10, peers=peers)
    return [limits, *(Case(f"{grid.name} beside others", partial(raced, grid)) for grid in grids)]


def of_targets(measure: Callable[[Grid], Result], journal: Journal) -> list[Case]:
    """Ours as it is launched, some by pointers too, and in order what went wrong."""
    found = []
    for grid in TARGETS:
        case = Case(grid.name, partial(measure, grid))
        found += [case, instead("in order", case, journal)]
        if grid in BY_POINTERS:
            found.append(beside("by pointers", case, journal))
    return found


if __name__ == "__main__":
    sys.exit(serve(cases))
