"""Under a table: one line on the screen, everything with --explain, nothing where there is nothing to say."""

from __future__ import annotations

from io import StringIO

from kvtool.catalog.models_yaml import load_catalogue
from kvtool.report.terminal import Terminal, print_notes, short_notes


def printed(notes: list[str], *, explain: bool) -> str:
    console = Terminal(file=StringIO(), width=80)
    print_notes(notes, console, hinge="a guess: 1 GiB", explain=explain)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_the_screen_says_what_it_hangs_on_and_how_to_see_the_rest() -> None:
    assert printed(["one", "[two]"], explain=False) == ("Hangs most on a guess: 1 GiB. 2 notes: --explain or --json.\n")


def test_explain_shows_every_note_as_it_stands() -> None:
    assert printed(["one", "[two]"], explain=True) == "- one\n- [two]\n"


def test_what_is_not_there_is_not_told() -> None:
    assert short_notes([], None) == ""
    assert short_notes(["one"], None) == "1 note: --explain or --json."
    assert short_notes([], "a guess: 1 GiB") == "Hangs most on a guess: 1 GiB."


def test_what_a_name_was_taken_for_is_said_always() -> None:
    model = load_catalogue().find_variant("llama3.1:8b")
    assert model is not None
    assert all(note.startswith("assumed: ") for note in model.assumed)
    said = " ".join(printed([*model.assumed, "another"], explain=False).split())
    assert "taken to have the layers of meta-llama/Llama-3.1-8B" in said
    assert "another" not in said
    assert "3 notes" in said
