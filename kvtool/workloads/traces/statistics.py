"""Means of a trace's sessions: what a made trace is held against."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

from kvtool.workloads.traces.base import TraceRequest


def session_statistics(requests: Iterable[TraceRequest]) -> dict[str, float]:
    """Sessions; means over them of turns, of tokens that a turn appends and that it answers, of the total at the end
    and of prompts. A request without a session is one of its own. Empty where there are no requests.
    """
    sessions: dict[str, list[TraceRequest]] = {}
    for request in requests:
        sessions.setdefault(request.session or f"line {request.line}", []).append(request)
    if not sessions:
        return {}
    turns = list(sessions.values())
    return {
        "sessions": float(len(turns)),
        "turns": fmean(map(len, turns)),
        "append_tokens": fmean(_appended(own) for own in turns),
        "answer_tokens": fmean(fmean(turn.output_tokens for turn in own) for own in turns),
        "total_tokens": fmean(own[-1].input_tokens + own[-1].output_tokens for own in turns),
        "prompt_tokens": fmean(fmean(turn.input_tokens for turn in own) for own in turns),
    }


def _appended(turns: list[TraceRequest]) -> float:
    """Mean tokens between an answer and the next turn; a turn that does not go on appends its whole prompt."""
    if len(turns) == 1:
        return float(turns[0].input_tokens)
    ends = [turn.input_tokens + turn.output_tokens for turn in turns]
    return fmean(
        turn.input_tokens - (end if turn.input_tokens >= end else 0) for end, turn in zip(ends, turns[1:], strict=False)
    )
