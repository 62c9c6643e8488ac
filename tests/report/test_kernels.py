"""A kernels document in every form: tables that keep their width, rows of a CSV file, a chart that names its lines."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from kvtool.report.kernels import kernel_tables, kernels_figure, print_kernels, write_kernels
from kvtool.results import (
    KernelBytes,
    KernelCase,
    KernelCheck,
    KernelMemory,
    KernelMetrics,
    KernelRoofline,
    KernelsDocument,
    Summary,
    read_document,
)

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
    console = Console(width=width, file=io.StringIO(), record=True, color_system=None)
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
    text = printed(document(), 100)
    assert text.startswith("model example/llama, layer full, dtype bf16, kv cache dtype bf16, block size 16")
    assert [table.columns[0] for table in kernel_tables(document())] == ["ctx", "ctx", "batch"]
    assert kernel_tables(widest())[0].columns[0] == "layer cache page"


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
