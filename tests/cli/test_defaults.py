"""Defaults of options from a project's file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvtool.cli.flags.defaults import find_defaults
from tests.cli.in_process import run

SIZE = ("size", "llama-3.1-8b", "--json")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder; the program runs in a folder of it."""
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    return tmp_path


def inputs(out: str) -> list[tuple[str, int]]:
    return [(row["inputs"]["gpu"], row["inputs"]["context"]) for row in json.loads(out)["rows"]]


def test_they_come_from_a_folder_above_and_are_named(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "kvtool.toml").write_text('gpu = "h100"\n[size]\ncontext = [8192, "32k"]\n[bench]\nnum-iters = 2\n')
    done = run(capsys, monkeypatch, *SIZE)
    assert inputs(done.out) == [("H100-SXM-80GB", 8192), ("H100-SXM-80GB", 32768)]
    assert "--gpu h100" in done.err
    assert "--context 8192,32k" in done.err


def test_what_is_typed_goes_before_them(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "kvtool.toml").write_text('gpu = "h100"\ncontext = "8k"\n')
    done = run(capsys, monkeypatch, *SIZE, "--context", "4k")
    assert inputs(done.out) == [("H100-SXM-80GB", 4096)]
    assert "--context" not in done.err


def test_pyproject_toml_holds_them_too(project: Path) -> None:
    (project / "pyproject.toml").write_text('[project]\nname = "x"\n[tool.kvtool]\ngpu = "h100"\n')
    found = find_defaults(Path.cwd())
    assert found is not None
    assert found.of(("size",), {"gpu": "gpu"}) == {"gpu": "h100"}


def test_a_pyproject_of_others_is_none(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("not even [toml")
    assert find_defaults(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("gpux = 1", "no command has 'gpux': did you mean gpu"),
        ("[size]\ngpux = 1", "size has no 'gpux': did you mean gpu"),
        ("gpu = ", "is not TOML"),
        ("[size.gpu]\na = 1", "gpu is no text, number or list"),
        ("size = 1\n[trace]\n", "no command has 'size'"),
        ("gpu = " + "[" * 5000, "is not TOML"),
    ],
)
def test_what_it_may_not_say_is_told_in_one_line(
    text: str, told: str, project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "kvtool.toml").write_text(text)
    done = run(capsys, monkeypatch, *SIZE)
    assert (done.code, done.out) == (2, "")
    assert told in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    "text", ["# [tool.kvtool]\n", '[tool.kvtool-x]\ngpu = "h100"\n', '[[tool.kvtool]]\ngpu = "h100"\n']
)
def test_what_only_looks_like_them_is_not_theirs(project: Path, text: str) -> None:
    (project / "pyproject.toml").write_text(text)
    assert find_defaults(Path.cwd()) is None
