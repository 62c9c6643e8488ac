"""The kernels that targets are of, one call a case: ours by TMA and by pointers, or beside other libraries."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from statistics import median

from kvtool.bench.peers import KERNEL_PEERS
from tools.gpu.cases import Case, Result, serve
from tools.gpu.journal import Journal
from tools.gpu.pieces.measuring import DEVICE, PAGE, Grid, kernel_document, measured_ceiling
from tools.gpu.pieces.variants import beside, instead, tiles_with
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
INT8 = Grid(LLAMA, "decode", 4 * K, 32, "int8_per_token_head")
RAGGED = (32 * K, *[K] * 31)  # tokens of the sequences of a batch
PEERED = (MOST[0], LONG_PREFILL, MOST[2], MOST[1], Grid(LLAMA, "decode", 16 * K, 8), Grid(LLAMA, "decode", K, 32))
ALL_PEERED = (*PEERED, FP8, *MLA, Grid(LLAMA, "prefill", 16 * K, query_len=2 * K), Grid(LLAMA, "decode", 128 * K))
TORCHS = ("sdpa", "cudnn")  # attention that is there wherever torch is
LIMITS = "limits"
NUM_ITERS = 15
CALLS = 20  # of a decode whose time is a pass's


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
    found = [Case("one long sequence among short ones", ragged)]
    for grid in (*TARGETS, INT8):
        case = Case(grid.name, partial(measure, grid))
        found += [case, instead("in order", case, journal)]
        if grid in BY_POINTERS:
            found.append(beside("by pointers", case, journal))
        if grid is INT8:
            found.append(beside("by integers", case, journal))
    return found


def ragged(where: str = DEVICE, lengths: Sequence[int] = RAGGED) -> Result:
    """Microseconds of a decode of heads as Llama's: by a grid of splits, and by a list of what there is to do."""
    import torch

    from kvtool.bench.kernels.passes import make_pass
    from kvtool.kernels.pages import Pages
    from kvtool.kernels.rows import Rows, Softmax
    from kvtool.kernels.triton import launch
    from kvtool.machine.timers import time_in_turns

    device, random = torch.device(where), torch.Generator(where).manual_seed(0)
    width = -(-max(lengths) // PAGE)
    num_pages = sum(-(-length // PAGE) for length in lengths)
    k, v = (torch.randn(num_pages, PAGE, 8, 128, device=device, generator=random).bfloat16() for _ in range(2))
    order = torch.randperm(num_pages, device=device, generator=random).int()
    tables = torch.zeros(len(lengths), width, dtype=torch.int32, device=device)
    for row, mine in zip(tables, order.split([-(-length // PAGE) for length in lengths]), strict=True):
        row[: len(mine)] = mine
    rows = Rows(tables, torch.tensor(lengths, dtype=torch.int32, device=device))
    q = torch.randn(len(lengths), 32, 128, device=device, generator=random).bfloat16()
    call = partial(launch.decode, q, Pages(k, v), rows, Softmax(128**-0.5))
    outputs, passes = [], []
    for context in (nullcontext(), tiles_with("lists")):
        with context:
            outputs.append(call())
            passes.append(make_pass([call] * CALLS, device, capture=device.type == "cuda"))
    timed = time_in_turns([each.contender(None) for each in passes], device=where, warmup=1, iterations=NUM_ITERS)
    grid_us, list_us = (median(each.seconds) / CALLS * 1e6 for each in timed)
    difference = float((outputs[0].float() - outputs[1].float()).abs().max())
    return {"lengths": list(lengths), "grid_us": grid_us, "list_us": list_us, "max_abs_diff": difference}


if __name__ == "__main__":
    sys.exit(serve(cases))
