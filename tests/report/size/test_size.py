from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from matplotlib.text import Text

from kvtool.report.files import csv_bytes, png_bytes
from kvtool.report.rows import size_rows
from kvtool.report.size.charts import size_figure
from kvtool.report.size.size import print_size
from kvtool.report.size.tables import layer_table, row_table
from kvtool.report.terminal import Terminal
from kvtool.results import SizeDocument
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.size import curve, size
from tests.sizing.example import ALL_KINDS, CARD, DEEPSEEK_V32, LLAMA_8B, QWEN3_NEXT, SLIDING

OPTIONS = SizeOptions(contexts=(8192, 131072), batch_sizes=(1, 16), gpu=CARD)


def printed(document: SizeDocument, width: int, **more: Any) -> str:
    console = Terminal(width=width, file=io.StringIO(), color_system=None)
    print_size(document, console, **more)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_rows_of_a_card() -> None:
    table = row_table(size(LLAMA_8B, options=OPTIONS).rows)
    assert table.title == "KV cache in bf16 on 1 x CARD-80GB"
    assert table.rows[0] == ("8k", "1", "1 GiB", "1 GiB", "51", "128k", "8.04")
    assert table.rows[3] == ("128k", "16", "16 GiB", "256 GiB", "3", "26,544", "145")
    assert "= 51.86 GiB for cache" in table.note


def test_rows_without_a_card_say_what_a_step_reads() -> None:
    table = row_table(size(SLIDING, options=SizeOptions(contexts=(131072,))).rows)
    assert table.rows == [("128k", "1", "2.02 GiB", "2.02 GiB", "2.02 GiB")]


def test_the_answer_is_line_1_without_a_card_too() -> None:
    """Llama-3.1-8B: 131,072 B x 8,192 and x 131,072 tokens, halved over two GPUs; a pool says what it holds."""

    def first(**more: Any) -> str:
        options = SizeOptions(**{"contexts": (8192, 131072), **more})
        return printed(size(LLAMA_8B, options=options), 120).splitlines()[0]

    assert first() == "From 1 GiB of KV cache for 8k x 1 in bf16 to 16 GiB for 128k x 1 in bf16."
    assert first(contexts=(8192,), parallel=Parallel(tp=2)) == "512 MiB of KV cache a GPU for 8k x 1 in bf16."
    vllm = EngineOptions(name="vllm", kv_cache_memory_bytes=16 << 30, max_model_len=8192)
    assert first(engine=vllm) == "16 GiB hold 131,072 tokens, 16.00 requests of 8k at once."


def test_several_gpus_show_one_of_them() -> None:
    table = row_table(size(LLAMA_8B, options=SizeOptions(contexts=(8192,), parallel=Parallel(tp=2))).rows)
    assert table.columns[3] == "a GPU"
    assert table.rows[0][2:4] == ("1 GiB", "512 MiB")


def test_unknown_weights_show_question_marks() -> None:
    from dataclasses import replace

    table = row_table(size(replace(LLAMA_8B, architecture=None), options=OPTIONS).rows)
    assert table.rows[0][4:] == ("?", "?", "-")


def test_layers_by_kind_and_dtype() -> None:
    options = SizeOptions(contexts=(8192,), kv_cache_dtypes=("bf16", "fp8"))
    assert layer_table(size(DEEPSEEK_V32, options=options).rows).rows == [
        ("bf16", "61 mla", "1 x 576", "16", "70,272", ""),
        ("bf16", "61 indexer", "1 x 128", "8.25", "8,052", ""),
        ("fp8", "61 mla", "1 x 576", "9.111", "40,016", ""),
        ("fp8", "61 indexer", "1 x 128", "8.25", "8,052", ""),
    ]
    assert layer_table(size(QWEN3_NEXT).rows).rows[0] == ("bf16", "36 state", "", "0", "37.69 MiB a sequence")
    assert layer_table(size(SLIDING).rows).rows[0] == ("bf16", "4 sliding", "8 x (128 + 128)", "16,384", "1k tokens")


@pytest.mark.parametrize("width", [80, 100])
def test_printed_lines_keep_to_the_width(width: int) -> None:
    text = printed(size(*ALL_KINDS, options=SizeOptions(contexts=(1 << 20,), gpu=CARD)), width, explain=True)
    assert max(map(len, text.splitlines())) <= width
    assert "llama-8b: gqa, 32 layers" in text
    assert "51 CUDA graphs, fitted" in " ".join(text.split())


def test_the_decision_what_would_do_and_the_hinge_stand_on_the_screen_and_the_notes_do_not() -> None:
    document = size(LLAMA_8B, options=OPTIONS)
    text = printed(document, 100, hinge="a guess: 1 GiB", remedies=[[], [], [], ["--batch-size 3", "--tp 8"]])
    assert "KV 1 GiB fits, 50.9 GiB to spare" in text
    assert "128k x 16 in bf16: no: 204 GiB short. Each of these alone would do:\n  --batch-size 3\n  --tp 8\n" in text
    assert text.endswith(f"Hangs most on a guess: 1 GiB. {len(document.assumptions)} notes: --explain or --json.\n")
    assert not any(note in " ".join(text.split()) for note in document.assumptions)


def test_csv_has_every_number_unrounded() -> None:
    document = size(LLAMA_8B, options=OPTIONS)
    lines = list(csv.DictReader(io.StringIO(csv_bytes(list(size_rows(document.rows))).decode())))
    assert len(lines) == 4
    assert lines[0]["model"] == "llama-8b"
    assert lines[0]["kv_bytes_total"] == str(8192 * 131_072)
    assert lines[0]["fit_max_batch_size"] == "51"
    assert lines[0]["engine"] == ""


@pytest.mark.parametrize("gpu", [None, CARD])
def test_the_chart_draws_every_line_the_weights_and_the_limit(gpu: object) -> None:
    options = SizeOptions(contexts=(8192,), batch_sizes=(1, 16), gpu=gpu)  # type: ignore[arg-type]
    figure = size_figure(size(LLAMA_8B, options=curve(LLAMA_8B, options)))
    (axes,) = figure.axes
    assert len(axes.lines) == 2
    texts = [text.get_text() for text in axes.texts]
    assert "bf16, batch 16" in texts
    assert "weights, 14.96 GiB" in texts
    assert ("limit of CARD-80GB, 66.84 GiB" in texts) == (gpu is not None)
    assert png_bytes(figure).startswith(b"\x89PNG")


def test_labels_do_not_overlap() -> None:
    options = SizeOptions(batch_sizes=(1, 2), kv_cache_dtypes=("bf16", "fp16", "fp8", "int8"), gpu=CARD)
    figure = size_figure(size(LLAMA_8B, options=curve(LLAMA_8B, options)))
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]  # without the lines to the points
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_weights_far_below_the_lines_stay_on_the_chart() -> None:
    options = SizeOptions(contexts=(32768,), batch_sizes=(64,), parallel=Parallel(tp=4), gpu=CARD)
    document = size(LLAMA_8B, options=curve(LLAMA_8B, options))
    (axes,) = size_figure(document).axes
    assert axes.get_ylim()[0] < (document.rows[0].weights.bytes_per_gpu or 0)


def test_csv_tells_the_scalars_of_an_engine_where_one_is_asked() -> None:
    """20 GiB of Llama's 131,072 B a token: 10,240 blocks of 16 tokens."""
    engine = EngineOptions(name="vllm", kv_cache_memory_bytes=20 << 30, max_model_len=8192)
    (line,) = size_rows(size(LLAMA_8B, options=SizeOptions(contexts=(8192,), engine=engine)).rows)
    told = {name: value for name, value in line.items() if name.startswith("engine_")}
    assert told == {
        "engine_name": "vllm", "engine_version": "0.33.0", "engine_block_size": 16, "engine_num_blocks": 10_240,
        "engine_blocks_per_request": 512, "engine_max_concurrency": 20.0, "engine_gpu_kv_cache_tokens": 163_840,
        "engine_max_model_len": 8192, "engine_refusal": None,
    }  # fmt: skip
    (without,) = size_rows(size(LLAMA_8B, options=SizeOptions(contexts=(8192,))).rows)
    assert not any(name.startswith("engine_") for name in without)
