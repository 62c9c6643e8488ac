"""A kernels document in every form: tables that keep their width, rows of a CSV file, a chart that names its lines."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import msgspec
import pytest

from kvtool.report.kernels.charts import kernels_figure
from kvtool.report.kernels.kernels import print_kernels, write_kernels
from kvtool.report.kernels.peers import library_lines
from kvtool.report.kernels.tables import kernel_tables
from kvtool.report.terminal import Terminal
from kvtool.results import (
    KernelBytes,
    KernelCase,
    KernelCheck,
    KernelColdStart,
    KernelMemory,
    KernelMetrics,
    KernelPeer,
    KernelRoofline,
    KernelsDocument,
    Power,
    Summary,
    read_document,
)
from kvtool.results.warnings import load_warnings

READ_GBPS, TFLOPS = 2900.0, 750.0
KINDS = {"decode": "paged_decode", "prefill": "paged_prefill", "store": "store_kv"}


def case(part: str, context: int, batch_size: int, seconds: float = 1e-4, **inputs: object) -> KernelCase:
    """From arithmetic alone: 4096 B a token."""
    tokens = batch_size * context
    time_ms = Summary(**dict.fromkeys(("mean", "std", "p50", "p90", "p95", "p99"), 1e3 * seconds), n=5)
    told: dict[str, object] = {
        "model": "example/llama",
        "layer": "full",
        "context": None if part == "store" else context,
        "batch_size": batch_size,
        "query_len": 2048 if part == "prefill" else 1,
        "dtype": "bf16",
        "kv_cache_dtype": "bf16",
        "block_size": 16,
        "device": "cuda",
        "backend": "triton",
        "num_iters": 5,
    }
    flops = 0 if part == "store" else 16384 * tokens * int(told["query_len"])
    return KernelCase(
        name=f"{part}/{context}x{batch_size}",
        kernel=KINDS[part],
        inputs={**told, **inputs},
        samples_s=[seconds] * 5,
        metrics=KernelMetrics(time_ms=time_ms, gbps=4096e-9 * tokens / seconds, tflops=flops / seconds / 1e12 or None),
        bytes=KernelBytes(kv_read=4096 * tokens, kv_written=0, other=0, flops=flops),
        memory=KernelMemory(pool_bytes=1 << 30, working_set_bytes=1 << 30, calls_per_sample=8),
        roofline=KernelRoofline(
            read_gbps_measured=READ_GBPS,
            copy_gbps_measured=READ_GBPS,
            tflops_measured=TFLOPS,
            ideal_ms=0.01,
            mbu=4096e-9 * tokens / seconds / READ_GBPS,
            mfu=0.5,
            bound="memory",
        ),
        check=KernelCheck(outputs_equal=True, max_abs_diff=0.002, text="equal"),
    )


def grid(**inputs: object) -> Iterator[KernelCase]:
    for context, batch_size in product((1024, 32768), (1, 32)):
        yield case("decode", context, batch_size, seconds=1e-6 * batch_size * context / 512, **inputs)
    for context in (1024, 32768):
        yield case("prefill", context, 1, seconds=1e-6 * context, **inputs)
    yield case("store", 1, 32, seconds=5e-6, **inputs)


def document(*cases: KernelCase) -> KernelsDocument:
    return KernelsDocument(
        environment={"gpu": "NVIDIA Example", "device": "cuda"},
        definitions={},
        assumptions=["K, V and queries are random"],
        cases=list(cases or grid()),
    )


def widest() -> KernelsDocument:
    """Every input varies, under its longest names."""
    variants = product(("full", "sliding"), ("bf16", "fp8_e5m2"), (16, 128))
    return document(
        *(c for layer, cache, page in variants for c in grid(layer=layer, kv_cache_dtype=cache, block_size=page))
    )


def printed(what: KernelsDocument, width: int) -> str:
    console = Terminal(width=width, file=io.StringIO(), record=True, color_system=None)
    print_kernels(what, console)
    return console.export_text()


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("what", [document(), widest()], ids=["plain", "widest"])
def test_tables_keep_to_the_width_and_break_no_cell(what: KernelsDocument, width: int) -> None:
    lines = printed(what, width).splitlines()
    assert max(map(len, lines)) <= width
    rows = [row for table in kernel_tables(what) for row in table.rows]
    flattened = [" ".join(line.split()) for line in lines]
    assert [row for row in rows if " ".join(row) not in flattened] == []


def test_what_all_cases_share_is_told_once_above() -> None:
    answer, _, text = printed(document(), 100).partition("\n")
    assert answer == "Decode reaches 72% of what this device reads; prefill reaches 50% of a matrix product."
    assert text.startswith("model example/llama, layer full, dtype bf16, kv cache dtype bf16, block size 16")
    assert [table.columns[0] for table in kernel_tables(document())] == ["ctx", "ctx", "batch"]
    assert kernel_tables(widest())[0].columns[0] == "layer cache page"


def test_a_prefill_that_decompresses_has_a_table_of_its_own() -> None:
    over_latents, decompressed = (
        msgspec.structs.replace(case("prefill", 1024, 1), kernel=kernel)
        for kernel in ("mla_prefill", "mla_prefill_decompressed")
    )
    tables = kernel_tables(document(over_latents, decompressed))
    assert [(table.title, len(table.rows)) for table in tables] == [
        ("mla_prefill", 1),
        ("mla_prefill_decompressed", 1),
    ]


def test_a_row_says_time_rate_and_share() -> None:
    decode, prefill, store = kernel_tables(document())
    assert decode.rows[0] == ("1k", "1", "4 MiB", "2.00", "2.00", "2,097", "72%", "2e-03")
    assert prefill.rows[1] == ("32k", "2k", "32.8", "32.8", "33.6", "50%", "2e-03")
    assert [column for column in prefill.columns if column.startswith("ms")] == ["ms\np50", "ms\np90"]
    assert "2,900 GB/s" in decode.note
    assert "750 TFLOP/s" in prefill.note
    assert store.title == "store_kv"


def test_what_is_missing_or_wrong_is_said() -> None:
    good = case("decode", 1024, 1)
    reason = "the working set is under 2x the last-level cache"
    hidden = msgspec.structs.replace(good, roofline=msgspec.structs.replace(good.roofline, mbu=None, reason=reason))
    wrong = msgspec.structs.replace(good, check=KernelCheck(outputs_equal=False, max_abs_diff=0.5, text=""))
    nan = msgspec.structs.replace(good, check=KernelCheck(outputs_equal=False, max_abs_diff=None, text=""))
    (table,) = kernel_tables(document(hidden, wrong, nan))
    assert [row[-2:] for row in table.rows] == [("-", "2e-03"), ("1%", "WRONG 5e-01"), ("1%", "WRONG not finite")]
    assert f"-: {reason}." in table.note


def test_the_chart_names_every_line_and_the_limit() -> None:
    figure = kernels_figure(document())
    decode, prefill = figure.axes
    assert {text.get_text() for text in decode.texts} == {"batch 1: 2,097", "batch 32: 2,097", "measured read: 2,900"}
    assert {text.get_text() for text in prefill.texts} == {"33.6", "measured matmul: 750"}
    assert [tick.get_text() for tick in decode.get_xticklabels()] == ["1k", "32k"]
    assert decode.get_ylim()[1] >= 2900


@pytest.mark.parametrize("part", ["decode", "prefill", "store"])
def test_one_part_alone_is_enough(part: str) -> None:
    what = document(case(part, 1024, 1))
    assert len(kernel_tables(what)) == 1
    assert len(kernels_figure(what).axes) == 1


def test_three_files_are_written_and_read_back(tmp_path: Path) -> None:
    paths = write_kernels(widest(), tmp_path)
    assert [path.name for path in paths] == ["kernels.json", "kernels.csv", "kernels.png"]
    assert read_document(paths[0], KernelsDocument) == widest()
    rows = list(csv.DictReader(io.StringIO(paths[1].read_text())))
    assert len(rows) == len(widest().cases)
    assert rows[0]["inputs.context"] == "1024"
    assert rows[6]["inputs.context"] == ""  # a store has no context
    assert float(rows[0]["metrics.time_ms.p50"]) == pytest.approx(0.002)
    assert paths[2].read_bytes().startswith(b"\x89PNG")


# --- peers -----------------------------------------------------------------------------------------------------------

LIBRARIES = ("sdpa", "flex", "flashinfer", "flash-attn", "vllm-triton", "sglang-triton")


def peer(name: str, value: float | None = None, *, spread: float = 0.1, **given: object) -> KernelPeer:
    """Timed at `value` times ours, or not at all."""
    if value is None:
        return KernelPeer(**{"name": name, "version": None, "note": "not importable: no such module", **given})
    time_ms = Summary(**dict.fromkeys(("mean", "std", "p50", "p90", "p95", "p99"), 0.1 * value), n=5)
    timed = {"time_ms": time_ms, "ratio": value, "ratio_ci_low": value - spread, "ratio_ci_high": value + spread}
    return KernelPeer(**{"name": name, "version": "9.1", "outputs_equal": True, **timed, **given})


def with_peers(what: KernelCase, *peers: KernelPeer) -> KernelCase:
    return msgspec.structs.replace(what, peers=list(peers))


def raced(what: KernelsDocument) -> KernelsDocument:
    """Every peer at every point that is no store."""
    timed = [peer(name, 0.5 + 3.7 * index) for index, name in enumerate(LIBRARIES)]
    cases = [case if "store" in case.kernel else with_peers(case, *timed) for case in what.cases]
    return msgspec.structs.replace(what, cases=cases)


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("what", [raced(document()), raced(widest())], ids=["plain", "widest"])
def test_a_table_of_all_peers_keeps_to_the_width(what: KernelsDocument, width: int) -> None:
    lines = printed(what, width).splitlines()
    assert max(map(len, lines)) <= width
    *_, decode, prefill = kernel_tables(what)
    assert (decode.title, prefill.title) == tuple(f"peers of {KINDS[k]}" for k in ("decode", "prefill"))
    flattened = [" ".join(line.split()) for line in lines]
    assert [row for table in (decode, prefill) for row in table.rows if " ".join(row) not in flattened] == []
    assert decode.columns[-6:] == ("sdpa", "flex", "flash\ninfer", "flash\nattn", "vllm\ntriton", "sglang\ntriton")


def test_a_peer_s_cell_is_its_time_over_ours() -> None:
    wrong = peer("flex", None, outputs_equal=False, note="different")
    decode = with_peers(case("decode", 1024, 8), peer("sdpa", 1.2345), wrong, peer("flashinfer"))
    (_, table) = kernel_tables(document(decode, with_peers(case("decode", 2048, 8), peer("sdpa", 0.9))))
    assert [row[-3:] for row in table.rows] == [("1.23x", "WRONG", "-"), ("0.90x", "-", "-")]


def test_ways_that_move_more_are_held_against_the_limit() -> None:
    """A decode at half of the limit: what takes twice as long is at a quarter; 3x the bytes stand beside it."""
    ours = case("decode", 1024, 8)
    half = msgspec.structs.replace(ours.roofline, ideal_ms=ours.metrics.time_ms.p50 / 2, reason=None)
    ours = msgspec.structs.replace(ours, roofline=half)
    slow = peer("gathered", 2.0, moved_bytes=3 * ours.bytes.moved)
    *_, table = kernel_tables(document(with_peers(ours, peer("sdpa", 1.0), slow)))
    assert table.title == "paged_decode: % of the limit"
    assert table.rows[0][-3:] == ("50%", "50%", "25% (3.0x)")
    cached = msgspec.structs.replace(ours, roofline=msgspec.structs.replace(half, reason="in the cache"))
    *_, table = kernel_tables(document(with_peers(cached, slow)))
    assert table.rows[0][-2:] == ("-", "- (3.0x)")


def test_points_where_a_peer_is_ahead_are_named() -> None:
    cases = [
        with_peers(case("decode", 1024, 8), peer("sdpa", 0.8)),
        with_peers(case("decode", 32768, 8), peer("sdpa", 0.95)),
        with_peers(case("prefill", 2048, 1), peer("sdpa", 1.05)),
    ]
    ahead, version = library_lines(cases)
    assert ahead == "sdpa is ahead at decode 1k x 8 (0.80x); decode 32k x 8 (0.95x, within chance: 0.85x to 1.05x)."
    assert version == "sdpa 9.1."
    assert library_lines(cases[2:])[0] == "sdpa: not ahead of ours at any point (1 compared)."
    assert library_lines([with_peers(case("decode", 1, 1), peer("flex"))]) == ["flex: not importable: no such module."]


def test_a_note_of_some_points_says_of_how_many() -> None:
    cases = [
        with_peers(case("decode", 1024, 8), peer("flex", 2.0, note="compiled")),
        with_peers(case("decode", 2048, 8), peer("flex", None, note="failed: out of memory")),
    ]
    assert library_lines(cases)[1:] == [
        "flex 9.1: compiled (at 1 of 2 points).",
        "flex 9.1: failed: out of memory (at 1 of 2 points).",
    ]


def test_the_chart_has_a_row_for_each_point_and_a_colour_for_each_peer(tmp_path: Path) -> None:
    figure = kernels_figure(raced(document()))
    peers = figure.axes[-1]
    assert peers.get_yticklabels()[0].get_text() == "decode 1k x 1"
    assert len(peers.get_yticklabels()) == 6
    assert [text.get_text() for text in peers.get_legend().get_texts()] == list(LIBRARIES)
    assert len({handle.lines[0].get_color() for handle in peers.containers}) == len(LIBRARIES)
    assert len(kernels_figure(document()).axes) == 2
    paths = write_kernels(raced(document()), tmp_path)
    assert read_document(paths[0], KernelsDocument) == raced(document())


def test_a_cold_start_is_told_where_it_was_recorded() -> None:
    cold = [
        msgspec.structs.replace(case("decode", 1024, 1), cold_start=KernelColdStart(first_call_s=s, capture_s=capture))
        for s, capture in ((2.5, 0.05), (0.1, 0.25))
    ]
    said = "cold start, in no time above: a first call took up to 2,500 ms, capturing a graph up to 250 ms"
    assert said in " ".join(printed(document(*cold), 100).split())
    assert "cold start" not in printed(document(), 100)


def test_warnings_are_told_in_yellow_and_the_rest_is_dim() -> None:
    throttled = msgspec.structs.replace(case("decode", 1024, 1), power=Power(throttle_reasons=["power cap"]))
    warning = "the card throttled (power cap) during decode/1024x1"
    load = "another process used 0.9 cores while this ran"
    what = msgspec.structs.replace(
        document(throttled),
        environment={"other_load_cores": 0.9},
        assumptions=["random", warning, *load_warnings({"other_load_cores": 0.9})],
    )
    console = Terminal(width=200, file=io.StringIO(), force_terminal=True, color_system="standard")
    print_kernels(what, console)
    styled = console.file.getvalue()
    assert f"\x1b[33m- {warning}" in styled
    assert f"\x1b[33m- {load}" in styled
    assert "\x1b[2m- random" in styled
