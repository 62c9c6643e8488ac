"""A quoted log, read and held against the prediction."""

from __future__ import annotations

from pathlib import Path

from kvtool.catalog.gpus import find_gpu
from kvtool.results import VerifyDocument, VerifyRow
from kvtool.verify.facts import LogFacts
from kvtool.verify.lines import read_lines
from kvtool.verify.read import read_facts
from kvtool.verify.verify import Asked, verify

LOGS = Path(__file__).parent / "logs"
CONFIGS = Path(__file__).parent / "configs"


def quoted(name: str) -> LogFacts:
    return read_facts(read_lines(str(LOGS / name)), name)


def from_text(text: str) -> LogFacts:
    return read_facts(text.split("\n"), "log")


def held(facts: LogFacts, model: str | None = None, gpu: str | None = None, **flags: object) -> VerifyDocument:
    given = {name: str(value) for name, value in flags.items()}
    return verify(facts, Asked(model=model, gpu=find_gpu(gpu) if gpu else None, flags=given), log="log")


def row(document: VerifyDocument, term: str) -> VerifyRow:
    return next(each for each in document.rows if each.term == term)


def verdicts(document: VerifyDocument) -> dict[str, str]:
    return {each.term: each.verdict for each in document.rows}
