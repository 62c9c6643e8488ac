from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from kvtool.catalog.gpus import find_gpu
from kvtool.catalog.resolve import resolve_model
from kvtool.compare.models import compare_models
from kvtool.report.matrix import matrix_figure, matrix_table, print_matrix, write_matrix
from kvtool.results import MatrixDocument
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel


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


def test_a_card_adds_what_fits() -> None:
    table = matrix_table(matrix("h100"))
    assert table.columns[-2:] == ("fits", "most seqs")
    assert table.rows[1][-2] == "yes"


@pytest.mark.parametrize("width", [80, 100])
def test_what_is_printed_fits_the_terminal(width: int) -> None:
    console = Console(file=StringIO(), width=width)
    print_matrix(matrix("h100"), console)
    assert max(map(len, console.file.getvalue().splitlines())) <= width


def test_the_chart_and_the_files(tmp_path: Path) -> None:
    document = matrix()
    figure = matrix_figure(document)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["at 8k tokens", "at 32k tokens"]
    assert [len(axes.patches) for axes in figure.axes] == [8, 8]
    paths = write_matrix(tmp_path, document)
    assert [path.name for path in paths] == ["compare.json", "compare.csv", "compare.png", "report.html"]
    assert "http" not in paths[3].read_text()
    assert len(paths[1].read_text().splitlines()) == 17
