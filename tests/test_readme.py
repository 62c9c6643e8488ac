"""The README shows what kvtool prints: run again where it is the same everywhere, else printed from the document that
was measured, else recorded, and then held to its form."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer.main

from kvtool.cli.app import app
from tools import readme

TEXT = readme.README.read_text()
COMMANDS = typer.main.get_group(app).commands
GENERATED = re.compile(r"\[\d+ prompt \+ \d+ output tokens, TTFT [\d.,]+ ms, TPOT [\d.,]+ ms, \d+ pages of \d+\]")


def recorded(start: str) -> str:
    """The block whose first command begins so."""
    (found,) = [body for _, body in readme.blocks(TEXT, "recorded") if body.startswith(f"$ {start}")]
    return found


@pytest.mark.parametrize("body", [body for _, body in readme.blocks(TEXT, "run")], ids=lambda body: body.split("\n")[0])
def test_a_command_still_prints_what_the_readme_shows(body: str) -> None:
    assert readme.body("run", None, body) == body


@pytest.mark.parametrize(("what", "body"), readme.blocks(TEXT, "report"))
def test_a_measured_block_is_what_its_document_prints(what: str, body: str) -> None:
    assert readme.body("report", what, body) == body


def test_the_machine_is_the_one_of_the_documents() -> None:
    assert f"<!-- machine -->\n{readme.machine()}\n" in TEXT
    environment = json.loads((readme.REPORTS / "cpu" / "env.json").read_text())["environment"]
    assert environment["cpu"] in readme.machine()


def test_the_tests_passed() -> None:
    ((_, body),) = readme.blocks(TEXT, "tests")
    assert re.fullmatch(r"\$ make test\n\d+ passed(, \d+ \w+)* in [\d.]+s.*\n", body)


def test_both_forms_of_the_weights_generate_the_same_text() -> None:
    _, *runs = re.split(r"^\$ .*\n", recorded("python examples/smollm2_weights.py"), flags=re.M)
    texts = [run.strip().split("\n")[:-1] for run in runs[1:]]
    assert all(GENERATED.fullmatch(run.strip().split("\n")[-1]) for run in runs[1:])
    assert texts[0] == texts[1] != []


def test_the_ratios_to_transformers_are_those_of_the_times() -> None:
    rows = [line.strip("| ").split(" | ") for line in recorded("python examples/transformers").splitlines()[-2:]]
    for _, _, *cells in rows:
        times = [float(cell.rstrip("x")) for cell in cells]
        for ours, theirs, ratio in (times[:3], times[3:]):
            assert ours / theirs == pytest.approx(ratio, abs=0.02)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_block(name: str) -> None:
    assert re.search(rf"^\$ kvtool {name}\b", TEXT, re.M)


def test_the_tree_has_every_folder_of_the_package() -> None:
    folders = {path.parent.name for path in Path(readme.ROOT, "kvtool").glob("*/__init__.py")}
    assert folders == set(re.findall(r"^  (\w+)/ ", TEXT, re.M))


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^):]+)\)", TEXT)
    assert len(links) >= 4
    assert [link for link in links if not (readme.ROOT / link).exists()] == []
