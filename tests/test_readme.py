"""README and docs show what kvtool prints: run again where it is the same everywhere, else printed from the document
that was measured, else recorded, and then held to its form."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer.main

from kvtool.cli.app import app
from kvtool.cli.help import leaves
from tools import readme

TEXT = readme.README.read_text()
TEXTS = {page.relative_to(readme.ROOT).as_posix(): page.read_text() for page in readme.PAGES}
EVERYTHING = "\n".join(TEXTS.values())
COMMANDS = typer.main.get_group(app).commands
VERBS = {
    "advise",
    "size",
    "engines",
    "solve",
    "verify",
    "bench",
    "kernels",
    "compare",
    "generate",
    "gpu",
    "ranks",
    "replay",
    "tiers",
    "words",
    "workloads",
    "accuracy",
    "endpoint",
}
GENERATED = re.compile(r"\[\d+ prompt \+ \d+ output tokens, TTFT [\d.,]+ ms, TPOT [\d.,]+ ms, \d+ pages of \d+\]")


def recorded(start: str) -> str:
    """The block whose first command begins so."""
    (found,) = [body for _, body in readme.blocks(EVERYTHING, "recorded") if body.startswith(f"$ {start}")]
    return found


def ids(value: str | None) -> str:
    return (value or "").split("\n")[0]


@pytest.mark.parametrize(("what", "body"), readme.blocks(EVERYTHING, "run"), ids=ids)
def test_a_command_still_prints_what_the_pages_show(what: str | None, body: str) -> None:
    assert readme.body("run", what, body) == body


@pytest.mark.parametrize(("what", "body"), readme.blocks(EVERYTHING, "report"), ids=ids)
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
    bodies = recorded("python examples/smollm2_weights.py") + recorded("kvtool generate --weights smollm2/gguf")
    _, *runs = re.split(r"^\$ .*\n", bodies, flags=re.M)
    texts = [run.strip().split("\n")[:-1] for run in runs[1:]]
    assert len(texts) == 2
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
    assert re.search(rf"^\$ kvtool {name}\b", EVERYTHING, re.M)


def test_the_readme_is_read_and_the_docs_are_looked_up() -> None:
    assert len(TEXT.splitlines()) <= 200
    assert {f"docs/{verb}.md" for verb in VERBS} == set(TEXTS) - {"README.md"}
    assert [page for page in TEXTS if page != "README.md" and f"]({page}" not in TEXT] == []


def test_the_readme_shows_at_most_twelve_lines_of_a_command() -> None:
    _, *commands = (body for _, body in readme.blocks(TEXT, "report") + readme.blocks(TEXT, "run"))
    assert [body for body in commands if len(body.splitlines()) > 12] == []


def test_every_option_that_the_pages_name_exists() -> None:
    program = typer.main.get_group(app)
    known = {name for command in leaves(program) for option in command.params for name in option.opts}
    prose = re.sub(r"```.*?```", "", EVERYTHING, flags=re.S)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", prose))
    assert len(named) >= 20
    assert named - known - {"--help"} == set()


def test_the_tree_has_every_folder_of_the_package() -> None:
    folders = {path.parent.name for path in Path(readme.ROOT, "kvtool").glob("*/__init__.py")}
    assert folders == set(re.findall(r"^  (\w+)/ ", TEXT, re.M))


@pytest.mark.parametrize("page", readme.PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^):#]+)[^):]*\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_an_excerpt_shows_the_parts_that_were_asked_for() -> None:
    text = "first\nA table\n\n a b\n 1 2\n\nits note\nB said: yes\nlast\n"
    assert readme.excerpt(text, ("A table",)) == "[...]\nA table\n\n a b\n 1 2\n[...]\n"
    assert readme.excerpt(text, ("B said",)) == "[...]\nB said: yes\nlast\n"
    assert readme.excerpt(text, ("first",)) == "first\nA table\n[...]\n"
