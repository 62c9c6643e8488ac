from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import msgspec
import pytest

from kvtool.catalog.gpus import find_gpu
from kvtool.catalog.resolve import resolve_model
from kvtool.compare.models import compare_models
from kvtool.report.compare.compare import print_matrix, write_matrix
from kvtool.report.compare.models import engine_table, matrix_figure, matrix_table
from kvtool.report.terminal import Terminal
from kvtool.results import MatrixDocument
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.units import format_length


def matrix(gpu: str | None = None) -> MatrixDocument:
    models = [resolve_model(name) for name in ("llama-3.1-8b", "qwen3-8b")]
    options = SizeOptions(contexts=(8192, 32768), kv_cache_dtypes=("bf16", "fp8"), gpu=find_gpu(gpu) if gpu else None)
    return compare_models(models, options, [Parallel(tp=1), Parallel(tp=8)])


def test_a_line_for_each_model_and_setting() -> None:
    table = matrix_table(matrix())
    assert table.columns == ("cache", "a token", "8k", "32k", "ratio")
    assert table.rows[0][0] == "Llama-3.1-8B"
    assert table.rows[1] == ("  bf16", "128 KiB", "1 GiB", "4 GiB", "1.000")
    assert table.rows[6] == ("  bf16", "144 KiB", "1.12 GiB", "4.50 GiB", "1.125")
    assert table.rows[8][0] == "  bf16, 8 GPUs"


def test_the_first_line_names_the_smallest_cache() -> None:
    """32k tokens of 32 layers of 2 x 8 x 128 bytes in fp8, over 8 GPUs; 36 such layers, of which Llama is 32 / 36."""
    document = matrix()
    assert printed(document, 100)[0] == "At 32k the smallest cache on a GPU is Llama-3.1-8B's in fp8, 8 GPUs: 256 MiB."
    turned = msgspec.structs.replace(document, baseline="Qwen/Qwen3-8B")
    assert printed(turned, 200)[0].endswith("8 GPUs: 256 MiB, 0.889 times that of Qwen3-8B.")


def test_a_card_adds_what_fits() -> None:
    table = matrix_table(matrix("h100"))
    assert table.columns[-2:] == ("fits", "most seqs")
    assert table.rows[1][-2] == "yes"


NAMES = (
    *("llama-3.1-8b", "qwen3-8b", "deepseek-v3", "gpt-oss-120b", "gemma-3-27b-it", "llama-4-scout-17b-16e-instruct"),
    *("qwen3-next-80b-a3b-instruct", "mixtral-8x7b-v0.1"),
)


def large(models: int, contexts: tuple[int, ...] = (8192, 32768, 131072), gpu: str | None = "h200") -> MatrixDocument:
    options = SizeOptions(contexts=contexts, kv_cache_dtypes=("bf16", "fp8"), gpu=find_gpu(gpu) if gpu else None)
    return compare_models([resolve_model(name) for name in NAMES[:models]], options, [Parallel(tp=1), Parallel(tp=8)])


def printed(document: MatrixDocument, width: int) -> list[str]:
    console = Terminal(file=StringIO(), width=width)
    print_matrix(document, console)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("models", [3, 8])
def test_what_is_printed_fits_the_terminal_and_settings_stay_on_a_line(width: int, models: int) -> None:
    lines = printed(large(models), width)
    assert max(map(len, lines)) <= width
    assert sum(line.startswith("  bf16, 8 GPUs  ") for line in lines) == models
    assert not any(line.strip() == "GPUs" for line in lines)


def test_long_names_are_folded_at_their_hyphens() -> None:
    lines = [line.strip() for line in printed(large(6), 80)]
    assert "Llama-3.1-8B" in lines
    assert [line for line in lines if line in ("Llama-4-Scout-", "17B-16E-", "Instruct")] == [
        "Llama-4-Scout-",
        "17B-16E-",
        "Instruct",
    ]


def test_contexts_that_do_not_fit_side_by_side_go_below() -> None:
    """Ten contexts on 80 columns: three tables, each context once, and the ratio beside the longest."""
    contexts = tuple(1024 << power for power in range(10))
    lines = printed(large(2, contexts), 80)
    heads = [line.split() for line in lines if line.startswith("cache ")]
    assert len(heads) > 1
    shown = [word for head in heads for word in head]
    assert [shown.count(format_length(context)) for context in contexts] == [1] * 10
    assert [("ratio" in head) for head in heads] == [False] * (len(heads) - 1) + [True]
    assert max(map(len, lines)) <= 80


def test_the_ratio_is_to_the_same_options_though_auto_is_another_dtype() -> None:
    """36 layers against 32 of the same heads, in fp16 against bf16."""
    models = [resolve_model("llama-3.1-8b"), replace(resolve_model("qwen3-8b"), dtype="float16")]
    table = matrix_table(compare_models(models, SizeOptions(contexts=(512,)), [Parallel()]))
    assert [row[0] for row in table.rows] == ["Llama-3.1-8B", "  bf16", "Qwen3-8B", "  fp16"]
    assert table.rows[3][-1] == "1.125"


def test_a_layout_that_was_refused_has_dashes_and_is_no_baseline() -> None:
    models = [resolve_model(name) for name in ("qwen2.5-0.5b", "llama-3.1-8b")]
    found = compare_models(models, SizeOptions(contexts=(8192, 32768)), [Parallel(tp=1), Parallel(tp=8)])
    rows = matrix_table(found).rows
    assert rows[2] == ("  8 GPUs", "-", "-", "-", "-")
    assert [row[-1] for row in rows[4:]] == ["10.667", "-"]  # 128 KiB a token against 12 KiB
    printed = StringIO()
    print_matrix(found, Terminal(file=printed, width=80))
    assert "warning: left out: tp 8 does not divide the 14 query heads" in printed.getvalue()


def test_the_chart_has_a_cell_for_every_row() -> None:
    document = large(3)
    figure = matrix_figure(document)
    axes, bar = figure.axes
    cells = [text.get_text() for text in axes.texts]
    assert cells[:4] == ["Llama-3.1-8B", "1", "4", "16"]
    assert len(cells) == 3 + len(document.rows) == 3 + 36
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["8k", "32k", "128k"]
    assert [tick.get_text() for tick in axes.get_yticklabels()][:4] == ["bf16", "fp8", "bf16, 8 GPUs", "fp8, 8 GPUs"]
    hatched = [patch for patch in axes.patches if patch.get_hatch()]
    assert len(hatched) == sum(row.fit.fits is False for row in document.rows) > 0
    assert any("hatched: does not fit H200-SXM-141GB" in text.get_text() for text in figure.texts)
    assert [tick.get_text() for tick in bar.get_yticklabels()] == ["64 MiB", "1.06 GiB", "18 GiB"]


@pytest.mark.parametrize("models", [2, 3, 8])
def test_no_words_of_the_chart_overlap_or_leave_it(models: int) -> None:
    figure = matrix_figure(large(models))
    figure.draw_without_rendering()
    axes = figure.axes[0]
    words = [*axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels(), *figure.axes[1].get_yticklabels()]
    boxes = [word.get_window_extent() for word in words if word.get_text()]
    assert not any(a.overlaps(b) for place, a in enumerate(boxes) for b in boxes[:place])
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert all(figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in boxes)


@pytest.mark.parametrize(("engine", "tokens"), [("vllm", "327,664"), ("sglang", "327,680")])
def test_an_engine_adds_what_it_would_cache(engine: str, tokens: str) -> None:
    """40 GiB at 128 KiB a token: 327,680 tokens, and vLLM keeps a block of 16 for itself."""
    start = EngineOptions(name=engine, kv_cache_memory_bytes=40 << 30)
    options = SizeOptions(contexts=(8192, 32768), kv_cache_dtypes=("bf16", "fp8"), engine=start)
    models = [resolve_model(name) for name in ("llama-3.1-8b", "jamba-v0.1")]
    document = compare_models(models, options, [Parallel(tp=1), Parallel(tp=8)])
    table = engine_table(document)
    assert table is not None
    assert table.rows[1][:2] == ("  bf16", "40 GiB")
    assert table.rows[1][3:] == ("128k", "2.50")
    assert abs(int(table.rows[1][2].replace(",", "")) - int(tokens.replace(",", ""))) <= 16
    assert table.rows[3][4] == "20.00"
    assert (table.rows[6][2] == "no") == (engine == "sglang")
    assert engine_table(matrix()) is None
    assert max(map(len, printed(document, 80))) <= 80


def test_the_files(tmp_path: Path) -> None:
    document = matrix()
    paths = write_matrix(document, tmp_path)
    assert [path.name for path in paths] == ["compare.json", "compare.csv", "compare.png", "report.html"]
    page = paths[3].read_text()
    assert "http" not in page
    assert page.count("data:image/png") == 1
    assert page.count("<tr>") == 1 + 2 * 5
    assert len(paths[1].read_text().splitlines()) == 17
