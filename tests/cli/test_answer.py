"""How a command ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from kvtool.cli.answer import answer, ending
from kvtool.cli.flags.output import Output, Printed
from kvtool.system.errors import KvtoolError

DOCUMENT = {"schema": "kvtool.test/1", "rows": []}


def write(document: dict[str, object], directory: Path) -> None:
    (directory / "a.txt").write_text(str(document["schema"]))


def test_it_is_written_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(DOCUMENT, Output(out=tmp_path), show=lambda d, console: console.print(d["schema"]), write=write)
    assert capsys.readouterr().out == "kvtool.test/1\n"
    assert (tmp_path / "a.txt").read_text() == "kvtool.test/1"


def test_what_cannot_be_written_is_printed_before_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(document: dict[str, object], directory: Path) -> None:
        raise KvtoolError("cannot write a.txt: No space left on device")

    with pytest.raises(KvtoolError, match="No space left"):
        answer(DOCUMENT, Output(out=tmp_path), show=lambda d, console: console.print(d["schema"]), write=full)
    assert capsys.readouterr().out == "kvtool.test/1\n"


def test_what_nobody_reads_is_written(tmp_path: Path) -> None:
    def closed(document: dict[str, object], console: object) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        answer(DOCUMENT, Output(out=tmp_path), show=closed, write=write)
    assert (tmp_path / "a.txt").read_text() == "kvtool.test/1"


def test_json_is_the_document_and_notes_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as stopped:
        answer(DOCUMENT, Printed(json=True), show=pytest.fail, notes=["beware"], code=3)  # type: ignore[arg-type]
    printed = capsys.readouterr()
    assert stopped.value.exit_code == 3
    assert json.loads(printed.out) == DOCUMENT
    assert printed.err == "beware\n"


@pytest.mark.parametrize(
    ("errors", "interrupted", "wrong", "notes", "code"),
    [
        ([], False, [], [], 0),
        ([], False, ["a"], ["kvtool: a"], 1),
        (["b"], False, ["a"], ["kvtool: b", "kvtool: a"], 3),
        (["b"], True, [], ["kvtool: b", "kvtool: interrupted; the cases that were done are kept"], 130),
    ],
)
def test_what_a_measurement_ends_with(
    errors: list[str], interrupted: bool, wrong: list[str], notes: list[str], code: int
) -> None:
    assert ending(errors, interrupted=interrupted, wrong=wrong) == (notes, code)
