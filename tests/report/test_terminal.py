from __future__ import annotations

import io

from rich.text import Text

from kvtool.report.terminal import Terminal


def printed(*texts: object, width: int, **options: object) -> list[str]:
    console = Terminal(width=width, file=io.StringIO(), color_system=None)
    for text in texts:
        console.print(text, **options)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_sentences_hang_under_their_beginning_and_end_in_no_blanks() -> None:
    text = "- one two three four five six seven " + "eight " * 8
    first, *others = printed(text, width=20)
    assert first == "- one two three four"
    assert all(line.startswith("  ") and line[2] != " " and line == line.rstrip() for line in others)
    assert max(map(len, others)) <= 20
    assert " ".join([first, *others]).split() == text.split()


def test_a_word_is_not_broken() -> None:
    path = "a/" * 30
    assert path in printed(f"see {path} there", width=20)[1]


def test_styles_and_lines_of_their_own_are_kept() -> None:
    assert printed(Text("a b\n\nc"), width=20) == ["a b", "", "c"]
    assert printed("[bold]x[/bold]", width=20) == ["[bold]x[/bold]"]
