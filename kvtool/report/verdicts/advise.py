"""Advice out: a line a question, why, what else there was and how to check it; CSV, a page. Reads results only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from kvtool.report import html
from kvtool.report.cells import DASH, percent
from kvtool.report.files import CsvValue, png_bytes, write_result
from kvtool.report.tables import Table, to_html
from kvtool.report.terminal import print_notes
from kvtool.report.verdicts.advise_chart import advise_figure
from kvtool.results import AdviseDecision, AdviseDocument

if TYPE_CHECKING:
    from rich.console import Console

LAYOUT = "How are the cards used?"
CHART = "How far each number is from the one that would turn the answer"


def print_advise(document: AdviseDocument, console: Console, *, explain: bool = False) -> None:
    """The answer, what was asked, the table, a sentence and a command for each question, what the answers hang on."""
    from rich.text import Text

    console.print(Text(headline(document), style="bold"))
    console.print(Text(describe(document), style="dim"))
    console.print()
    console.print(advise_table(document))
    for one in document.decisions:
        console.print(Text(f"- {one.question} {sentence(one)}"))
        if explain and one.options:
            console.print(Text(f"  of {options_words(one)}", style="dim"))
        console.print(Text(f"  $ {one.command}", style="dim"), soft_wrap=True)
    print_notes(document.assumptions, console, hinge=closest(document), explain=explain)


def write_advise(document: AdviseDocument, directory: Path, *, command: str = "") -> list[Path]:
    """advise.json, .csv, .png and report.html in `directory`; the paths written. Raises KvtoolError."""
    figure = advise_figure(document)
    page = html.page(
        f"kvtool advise: {document.inputs['model']}",
        describe(document),
        [
            html.key_points([headline(document), *(f"{one.question} {sentence(one)}" for one in document.decisions)]),
            html.section("Answers", [to_html(advise_table(document))]),
            html.section("Charts", [html.charts({CHART: png_bytes(figure)})]),
            html.section("What else there was", [to_html(options_table(document))]),
            html.section("To check", [html.bullets([f"{one.question} {one.command}" for one in document.decisions])]),
            html.section("Assumed", [html.bullets(document.assumptions)]),
            html.made_of(command, ["advise.json", "advise.csv", "advise.png"]),
        ],
    )
    rows = [_flat(one) for one in document.decisions]
    return write_result(directory, "advise", document, rows=rows, figure=figure, html=page)


def headline(document: AdviseDocument) -> str:
    """The answers that a start needs, in one line."""
    answers = {one.question: one.answer for one in document.decisions}
    cache, prefix, dtype, pages = list(answers.values())[:4]
    needed = {"yes": "A cache is needed"}.get(cache, f"{cache[:1].upper()}{cache[1:]}")
    kept = [dtype, f"pages of {pages}", "prefixes cached" if prefix == "yes" else "no prefix cache"]
    return f"{needed}{'' if cache.startswith('no') else ': ' + ', '.join(kept)}; {answers[LAYOUT]}."


def describe(document: AdviseDocument) -> str:
    """Model, cards, traffic and goal in one line."""
    inputs, traffic = document.inputs, document.traffic
    hits = f", {traffic.hit_tokens:,} of them come again" if traffic.hit_tokens else ""
    return (
        f"{inputs['model']} on {inputs['num_gpus']} x {inputs['gpu']}; {traffic.source}: "
        f"{traffic.input_tokens:,} prompt tokens{hits}, {traffic.output_tokens:,} output tokens; for {inputs['goal']}"
    )


def advise_table(document: AdviseDocument) -> Table:
    """A line a question; the margin is how far the number is from the one that would turn the answer."""
    return Table(
        title="",
        columns=("question", "answer", "number", "against", "unit", "margin"),
        rows=[
            (one.question, one.answer, number(one.value), number(one.threshold), one.unit, margin(one))
            for one in document.decisions
        ],
        labels=2,
        spare=("unit", "margin"),
    )


def options_table(document: AdviseDocument) -> Table:
    """Every answer that there could have been."""
    return Table(
        title="",
        columns=("question", "option", "number", "unit"),
        rows=[
            (one.question, option.name, number(option.value), one.unit)
            for one in document.decisions
            for option in one.options
        ],
        labels=2,
    )


def sentence(one: AdviseDecision) -> str:
    """The answer and why."""
    return f"{one.answer[:1].upper()}{one.answer[1:]}: {one.because}."


def options_words(one: AdviseDecision) -> str:
    """`one card 12.3, TP 2 20.1`."""
    return ", ".join(f"{option.name} {number(option.value)}" for option in one.options)


def closest(document: AdviseDocument) -> str | None:
    """The answer whose number is nearest to the one that would turn it."""
    known = [one for one in document.decisions if one.margin is not None]
    if not known:
        return None
    one = min(known, key=lambda decision: decision.margin or 0.0)
    return f'"{one.question}", whose number is {percent(one.margin, 1)} from turning the answer'


def margin(one: AdviseDecision) -> str:
    """A part of the threshold, or how many times that is."""
    return f"{one.margin:,.0f}x" if one.margin is not None and one.margin >= 10 else percent(one.margin)


def number(value: float | None) -> str:
    """Four digits, and all of those before the point."""
    if value is None:
        return DASH
    if value and abs(value) < 1e-3:
        return f"{value:.1e}"
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    return f"{value:,.{digits}f}"


def _flat(one: AdviseDecision) -> dict[str, CsvValue]:
    flat: dict[str, CsvValue] = msgspec.to_builtins(one)
    return flat | {"options": options_words(one)}
