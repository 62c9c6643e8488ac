from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from kvtool.cli.app import app
from kvtool.system.errors import KvtoolError

RUN = CliRunner()


def stdout(*arguments: str, width: int = 80) -> str:
    result = RUN.invoke(app, ["gpus", *arguments], env={"COLUMNS": str(width)}, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize("width", [80, 100])
def test_list_fits_the_terminal(width: int) -> None:
    lines = stdout(width=width).splitlines()
    assert len(lines) > 113
    assert max(map(len, lines)) <= width
    assert any(line.split()[0] == "H100-SXM-80GB" and "3,350" in line for line in lines if line.strip())


def test_search_and_json() -> None:
    document = json.loads(stdout("amd", "--json"))
    assert document["schema"] == "kvtool.gpus/1"
    assert {gpu["vendor"] for gpu in document["gpus"]} == {"AMD"}
    assert len(json.loads(stdout("--json"))["gpus"]) == 113


def test_one_card_shows_its_facts_too() -> None:
    text = stdout("l40s", width=100)
    assert text.splitlines()[0] == "L40S-48GB: 44.42 GiB, 864 GB/s, 362.05 bf16 TFLOP/s."
    assert "142 SM" in text


def test_nothing_found_is_refused_in_one_line() -> None:
    result = RUN.invoke(app, ["gpus", "h1000"])
    assert isinstance(result.exception, KvtoolError)
    assert "unknown gpu 'h1000': did you mean h100" in str(result.exception)


def test_help_ends_with_examples_that_work() -> None:
    assert stdout("--help").rstrip().endswith("kvtool gpus nvidia --json")
    assert "H100" in stdout("h100")
    json.loads(stdout("nvidia", "--json"))
