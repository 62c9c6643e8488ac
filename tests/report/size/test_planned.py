"""The engine's section of a size, at the widths a terminal has."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from kvtool.catalog.models_yaml import load_catalogue
from kvtool.report.size.planned import group_table, ledger_table, print_engine, print_ledgers
from kvtool.report.size.tables import row_table
from kvtool.report.terminal import Terminal
from kvtool.results import SizeDocument
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.size import size

CATALOGUE = load_catalogue()
START = EngineOptions(name="vllm", max_model_len=32768, kv_cache_memory_bytes=40 << 30)


def document(model: str, start: EngineOptions = START, parallel: Parallel | None = None) -> SizeDocument:
    parallel = parallel or Parallel()
    options = SizeOptions(contexts=(32768,), engine=replace(start, parallel=parallel), parallel=parallel)
    return size(CATALOGUE.get(model), options=options)


def printed(found: SizeDocument, width: int) -> str:
    out = io.StringIO()
    console = Terminal(file=out, width=width)
    print_engine(found.rows, console)
    print_ledgers(found, console)
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("model", ["llama-3.1-8b", "gemma-3-27b", "qwen3-next-80b-a3b-instruct", "deepseek-v3.2"])
def test_everything_but_the_log_line_keeps_to_the_width(model: str, width: int) -> None:
    found = document(model, parallel=Parallel(tp=2))
    line = found.rows[0].engine.log_line
    lines = printed(found, width).splitlines()
    assert line in lines
    assert max(len(text) for text in lines if text != line) <= width


def test_alike_groups_are_one_line() -> None:
    """Gemma-3-27B: 4 groups of 9 and 2 of 8 sliding layers, one of 10 full ones."""
    table = group_table(document("gemma-3-27b").rows[0].engine)
    assert table.rows == [
        ("4 x", "9 sliding", "16", "131,072", "1,179,648", "1,089"),
        ("2 x", "8 sliding", "16", "131,072", "1,048,576", "1,089"),
        ("1 x", "10 full", "16", "131,072", "1,310,720", "2,048"),
    ]


def test_the_ledger_says_what_would_help() -> None:
    rows = ledger_table(document("deepseek-v3", parallel=Parallel(tp=8)).rows[0]).rows
    assert [row[0] for row in rows] == ["tokens and states", "copies on tp ranks", "null block"]
    assert rows[1][1:] == ("--dcp, or dp instead of tp", "15.01 GiB", "87.5 %")


def test_a_refusal_is_said_with_the_groups_it_was_planned_for() -> None:
    text = printed(document("llama-3.1-8b", replace(START, kv_cache_memory_bytes=1 << 30)), 80)
    assert "would not start: To serve at least one request" in text
    assert "32 full" in text
    assert "Maximum concurrency" not in text


def test_stages_that_differ_are_both_named() -> None:
    text = printed(document("deepseek-v3", parallel=Parallel(tp=8, pp=2)), 100)
    assert "75,166 blocks of 571,392 and 552,960 B in 40 GiB" in text


def test_a_start_that_is_refused_outright_has_no_table() -> None:
    text = printed(document("MiniMaxAI/MiniMax-Text-01-hf"), 100)
    assert "no plan" in text
    assert "would not start: Model architecture MiniMaxForCausalLM" in text
    assert "Groups" not in text


@pytest.mark.parametrize(
    ("model", "engine", "pages"),
    [
        ("llama-3.1-8b", "tensorrt-llm", "pages of 32 tokens"),
        ("llama-3.1-8b", "lmdeploy", "pages of 64 tokens"),
        ("deepseek-v3.2", "vllm", "pages of 64 tokens"),  # what FlashMLA's sparse kernels and the indexer take
        ("llama-3.1-8b", "llama.cpp", "cells of one token"),
    ],
)
def test_rows_are_in_the_pages_of_the_engine(model: str, engine: str, pages: str) -> None:
    found = document(model, EngineOptions(name=engine, max_model_len=32768, kv_cache_memory_bytes=40 << 30))
    assert row_table(found.rows).note.startswith(f"In {pages}.")
    (row,) = found.rows
    assert row.inputs.block_size == row.engine.block_size
