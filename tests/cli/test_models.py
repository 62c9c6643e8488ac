from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from kvtool.cli.app import app
from kvtool.cli.lookups import models
from kvtool.system.errors import KvtoolError

RUN = CliRunner()


def stdout(*arguments: str, width: int = 80) -> str:
    result = RUN.invoke(app, ["models", *arguments], env={"COLUMNS": str(width)}, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def ids(*arguments: str) -> list[str]:
    document = json.loads(stdout(*arguments, "--json"))
    assert document["schema"] == "kvtool.models/1"
    return [model["id"] for model in document["models"]]


def refusal(*arguments: str) -> str:
    result = RUN.invoke(app, ["models", *arguments])
    assert isinstance(result.exception, KvtoolError)
    assert result.stdout == ""
    return str(result.exception)


@pytest.mark.parametrize("width", [60, 80, 100])
def test_list_fits_the_terminal(width: int) -> None:
    lines = stdout(width=width).splitlines()
    assert len(lines) > 136
    assert max(map(len, lines)) <= width
    assert any(line.startswith("llama-3.1-8b ") and line.endswith(" 131,072") for line in lines), "on one line"


@pytest.mark.parametrize(
    ("params", "text"),
    [(None, "-"), (135e6, "135M"), (999.6e6, "1B"), (8.03e9, "8.03B"), (999.7e9, "1T"), (1.026e12, "1.03T")],
)
def test_parameters_have_three_digits_and_no_exponent(params: float | None, text: str) -> None:
    assert models._size(None if params is None else round(params)) == text


def test_search_takes_every_word() -> None:
    assert ids("qwen3 next") == ["Qwen/Qwen3-Next-80B-A3B-Instruct"]
    assert "HuggingFaceTB/SmolLM2-135M" in ids("SMOLLM2")
    assert len(ids()) == 230


def test_words_need_no_quotes() -> None:
    assert ids("llama", "3.1") == ids("llama 3.1") != ids("llama")


def test_search_by_attention() -> None:
    assert set(ids("--attention", "mqa")) >= {"tiiuae/falcon-7b", "google/gemma-2b"}
    assert ids("deepseek", "--attention", "indexer") == [
        "deepseek-ai/DeepSeek-V3.2",
        "deepseek-ai/DeepSeek-V4-Flash",
        "deepseek-ai/DeepSeek-V4-Pro",
    ]
    assert "moonshotai/Kimi-Linear-48B-A3B-Instruct" in ids("--attention", "mla")


def test_one_model_shows_its_facts_too() -> None:
    text = stdout("gemma-3n")
    assert "google/gemma-3n-E2B-it" in text
    assert "confidence" in text


def test_json_has_the_files_facts_and_what_follows() -> None:
    (model,) = json.loads(stdout("llama-3.1-8b", "--json"))["models"]
    assert (model["layers"], model["num_layers"], model["attention"]) == ("32 full", 32, "gqa")
    assert model["kv_bytes_per_token_bf16"] == 131072


def test_nothing_found_is_refused_in_one_line() -> None:
    assert "no model matches 'llamma-3.1-8b': did you mean llama-3.1-8b" in refusal("llamma-3.1-8b")
    assert "--attention 'quadratic' is not a kind" in refusal("--attention", "quadratic")
    assert "no model that matches 'gpt2' has mla attention" in refusal("gpt2", "--attention", "mla")


def test_help_ends_with_examples_that_work() -> None:
    text = stdout("--help")
    assert text.rstrip().endswith("kvtool models deepseek-v3 --json")
    stdout("qwen3", "--attention", "gqa")
    assert ids("deepseek-v3")
