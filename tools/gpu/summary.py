"""What a run did, for a reader: a line a piece, then every case that went wrong with the first line of its error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tools.gpu.run import Outcome

STATES = ("done", "skipped", "failed", "lost")
LONGEST_LINE = 300


def as_markdown(outcomes: Sequence[Outcome]) -> str:
    """A table, and below it what to mend."""
    lines = [
        "| piece | seconds | processes | done | skipped | failed | lost | it |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in outcomes:
        counts = (str(one.cases.get(state, 0)) for state in STATES)
        lines.append(f"| {one.piece} | {one.seconds:.0f} | {one.processes} | {' | '.join(counts)} | {one.ended} |")
    wrong = [
        f"- {one.piece}: {case} {state}: {line[:LONGEST_LINE]}" for one in outcomes for case, state, line in one.wrong
    ]
    return "\n".join([*lines, "", *(wrong or ["Nothing went wrong."])]) + "\n"
