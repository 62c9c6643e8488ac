"""What a terminal would show, as Markdown."""

from __future__ import annotations

import io

from rich.text import Text

from kvtool.report.markdown import Markdown, escaped, to_markdown
from kvtool.report.tables import Table

TABLE = Table(
    title="Caches", columns=("name", "bytes\na token"), rows=[("a|b", "1"), ("int8_per_token_head", "2")], labels=1,
    note="In *pages*.",
)  # fmt: skip


def printed(*things: object) -> str:
    file = io.StringIO()
    console = Markdown(file=file)
    for thing in things:
        console.print(thing)
    console.close()
    return file.getvalue()


def test_a_table_stands_in_pipes_with_numbers_at_the_right() -> None:
    assert to_markdown(TABLE).split("\n") == [
        "**Caches**",
        "",
        "| name | bytes a token |",
        "| --- | ---: |",
        r"| a\|b | 1 |",
        "| int8_per_token_head | 2 |",
        "",
        r"In \*pages\*.",
    ]


def test_sentences_are_paragraphs_items_a_list_and_what_is_drawn_stands_in_one_fence() -> None:
    bar = Text(" 8k ███| fits", no_wrap=True)
    assert printed("It fits.", "- one", "- two", bar, bar, "Behind.").split("\n") == [
        "It fits.",
        "",
        "- one",
        "- two",
        "",
        "```",
        " 8k ███| fits",
        " 8k ███| fits",
        "```",
        "",
        "Behind.",
        "",
        "",
    ]


def test_a_fence_at_the_end_is_closed() -> None:
    assert printed(Text("vllm serve x", no_wrap=True)) == "```\nvllm serve x\n```\n\n"


def test_names_are_no_markup_and_move_no_cursor() -> None:
    assert escaped("_a_ <b> `c` [d](e)") == r"\_a\_ \<b> \`c\` \[d](e)"
    assert "\x1b" not in printed("a\x1b[31m")


def test_a_table_is_printed_as_one_and_not_as_text() -> None:
    assert "| --- | ---: |" in printed(TABLE)
