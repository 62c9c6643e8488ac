"""The tables of a kernels document: what moves bytes, what computes, and peers."""

from __future__ import annotations

from collections.abc import Sequence

from kvtool.report.cells import DASH, input_cell, percent, rate
from kvtool.report.inputs import varying_inputs
from kvtool.report.kernels.peers import ratio_cell
from kvtool.report.peers import find_peer, peer_names, with_peers
from kvtool.report.tables import Table
from kvtool.results import KernelCase, KernelsDocument
from kvtool.units import format_bytes_short, format_ms

# Inputs that tell one variant of a kernel from another where they vary, and are told once above the tables elsewhere.
VARIANTS = ("model", "layer", "dtype", "kv_cache_dtype", "block_size")
HEADINGS = {
    "kv_cache_dtype": "cache",
    "block_size": "page",
    "context": "ctx",
    "batch_size": "batch",
    "query_len": "new\ntokens",
    "flashinfer": "flash\ninfer",
    "flash-attn": "flash\nattn",
    "vllm-triton": "vllm\ntriton",
    "sglang-triton": "sglang\ntriton",
    "flashinfer-xqa": "flashinfer\nxqa",
}
SHOW_MS_FROM = 10.0  # a table with a longer time than this is in milliseconds


def verdict(document: KernelsDocument) -> str:
    """What decode and prefill reach of what the device can do, in a sentence; why not, where that is not known."""
    reached = [
        _reached("decode", [case.roofline.mbu for case in cases_of(document, "decode")], "what this device reads"),
        _reached("prefill", [case.roofline.mfu for case in cases_of(document, "prefill")], "a matrix product"),
    ]
    known = [text for text in reached if text]
    return f"{'; '.join(known)}." if known else f"{len(document.cases)} cases timed, next to no measured limit."


def _reached(kernel: str, ratios: Sequence[float | None], limit: str) -> str:
    known = sorted(ratio for ratio in ratios if ratio is not None)
    if not known:
        return ""
    least, most = percent(known[0]), percent(known[-1])
    return f"{kernel} reaches {most if least == most else f'{least} to {most}'} of {limit}"


def kernel_tables(document: KernelsDocument) -> list[Table]:
    """Every table that the document has cases for."""
    prefills = cases_of(document, "prefill")
    tables = (
        (stream_table, ("context", "batch_size"), cases_of(document, "decode")),
        (prefill_table, ("context", "query_len"), [case for case in prefills if "decompressed" not in case.kernel]),
        (prefill_table, ("context", "query_len"), [case for case in prefills if "decompressed" in case.kernel]),
        (stream_table, ("batch_size", "query_len"), cases_of(document, "store")),
    )
    shown = [table(cases, keys) for table, keys, cases in tables if cases]
    raced = [(table_keys, with_peers(cases)) for _, table_keys, cases in tables]
    shown += [peers_table(cases, keys) for keys, cases in raced if cases]
    return shown + [limit_table(cases, keys) for keys, cases in raced if any(map(moves_more, cases))]


def cases_of(document: KernelsDocument, part: str) -> list[KernelCase]:
    """The cases of one part: decode, prefill or store."""
    return [case for case in document.cases if part in case.kernel]


def stream_table(cases: Sequence[KernelCase], keys: tuple[str, ...]) -> Table:
    """Kernels that move bytes: GB/s next to what the device can read."""
    unit = time_unit(cases)
    measured = rate(cases[0].roofline.read_gbps_measured or 0.0)
    figures = [
        (
            format_bytes_short(case.bytes.kv_read + case.bytes.kv_written),
            *times(case, unit),
            rate(case.metrics.gbps),
            percent(case.roofline.mbu),
            agreement(case),
        )
        for case in cases
    ]
    note = f"% of read: of the {measured} GB/s that this device read in the same run."
    return labelled(
        cases,
        keys,
        columns=("KV", f"{unit}\np50", f"{unit}\np90", "GB/s", "% of\nread", "max\ndiff"),
        figures=figures,
        note=" ".join([note, *reasons(cases)]),
    )


def prefill_table(cases: Sequence[KernelCase], keys: tuple[str, ...]) -> Table:
    """Kernels that compute: TFLOP/s next to a matrix product's."""
    unit = time_unit(cases)
    measured = rate(cases[0].roofline.tflops_measured or 0.0)
    figures = [
        (
            *times(case, unit),
            rate(case.metrics.tflops or 0.0),
            percent(case.roofline.mfu),
            agreement(case),
        )
        for case in cases
    ]
    return labelled(
        cases,
        keys,
        columns=(f"{unit}\np50", f"{unit}\np90", "TFLOP\n/s", "% of\nmatmul", "max\ndiff"),
        figures=figures,
        note=f"The last tokens of a context, over all of it. % of matmul: of the {measured} TFLOP/s that "
        "a matrix product reached in the same run.",
    )


def peers_table(cases: Sequence[KernelCase], keys: tuple[str, ...]) -> Table:
    """Times of other libraries' kernels as multiples of ours, a column a peer."""
    names = peer_names(cases)
    rounds = sorted({len(case.samples_s) for case in cases})
    return labelled(
        cases,
        keys,
        columns=tuple(HEADINGS.get(name, name) for name in names),
        figures=[tuple(ratio_cell(case, name) for name in names) for case in cases],
        note=f"Median time of each / ours over {' or '.join(map(str, rounds))} rounds in turns, on the same pages: "
        f"above 1.00x ours is faster. {DASH}: not timed, see below.",
        title=f"peers of {' and '.join(sorted({case.kernel for case in cases}))}",
    )


def limit_table(cases: Sequence[KernelCase], keys: tuple[str, ...]) -> Table:
    """What each way makes of the machine: the time that its limits allow the work, of the time that it took."""
    names = peer_names(cases)
    return labelled(
        cases,
        keys,
        columns=("ours", *(HEADINGS.get(name, name) for name in names)),
        figures=[(share_cell(case, 1.0), *(peer_share(case, name) for name in names)) for case in cases],
        note="The bytes that must move, or the FLOPs, at what this device reads or multiplies in the same run, over "
        "the time taken. (3.0x): the bytes that this way moves at least, of those that must.",
        title=f"{' and '.join(sorted({case.kernel for case in cases}))}: % of the limit",
    )


def moves_more(case: KernelCase) -> bool:
    """Whether a way beside ours was timed that moves bytes which need not move."""
    return any(peer.moved_bytes is not None for peer in case.peers)


def peer_share(case: KernelCase, name: str) -> str:
    """Of a peer, with the bytes that it moves where they are more."""
    peer = find_peer(case.peers, name)
    if peer is None or peer.ratio is None:
        return DASH
    moved = "" if peer.moved_bytes is None else f" ({peer.moved_bytes / case.bytes.moved:.1f}x)"
    return share_cell(case, peer.ratio) + moved


def share_cell(case: KernelCase, times_ours: float) -> str:
    """A dash where the device's cache may have served it."""
    roofline = case.roofline
    if roofline.ideal_ms is None or roofline.reason is not None:
        return DASH
    return percent(roofline.ideal_ms / (case.metrics.time_ms.p50 * times_ours))


def labelled(
    cases: Sequence[KernelCase],
    keys: tuple[str, ...],
    *,
    columns: tuple[str, ...],
    figures: Sequence[tuple[str, ...]],
    note: str,
    title: str | None = None,
) -> Table:
    """The figures behind what tells their cases apart: the variant, where there are several, then `keys`."""
    variant = varying_inputs(cases, VARIANTS)
    names = [" ".join(input_cells(case, variant)) for case in cases]
    labels = [((name,) if variant else ()) + input_cells(case, keys) for name, case in zip(names, cases, strict=True)]
    heading = (" ".join(HEADINGS.get(key, key) for key in variant),) if variant else ()
    return Table(
        title=title or " and ".join(sorted({case.kernel for case in cases})),
        columns=heading + tuple(HEADINGS[key] for key in keys) + columns,
        rows=[label + row for label, row in zip(labels, figures, strict=True)],
        labels=len(heading) + len(keys),
        note=f"{'ctx: tokens a sequence. ' if 'context' in keys else ''}"
        f"{'' if title else 'max diff: from the reference kernels. '}{note}",
    )


def input_cells(case: KernelCase, keys: Sequence[str]) -> tuple[str, ...]:
    """The cells of a case's inputs."""
    return tuple(input_cell(key, case.inputs[key]) for key in keys)


def time_unit(cases: Sequence[KernelCase]) -> str:
    """Microseconds, or milliseconds where a time is long."""
    return "ms" if max(case.metrics.time_ms.p50 for case in cases) >= SHOW_MS_FROM else "µs"


def times(case: KernelCase, unit: str) -> tuple[str, str]:
    """The median and the 90th percentile in `unit`."""
    time_ms, factor = case.metrics.time_ms, 1.0 if unit == "ms" else 1e3
    return format_ms(factor * time_ms.p50), format_ms(factor * time_ms.p90)


def agreement(case: KernelCase) -> str:
    """The largest difference from the reference kernels; WRONG where rounding does not explain it."""
    check = case.check
    difference = "not finite" if check.max_abs_diff is None else f"{check.max_abs_diff:.0e}"
    return difference if check.outputs_equal else f"WRONG {difference}"


def reasons(cases: Sequence[KernelCase]) -> list[str]:
    """Why a share is missing, each reason once."""
    return [f"{DASH}: {reason}." for reason in sorted({c.roofline.reason for c in cases if c.roofline.reason})]
