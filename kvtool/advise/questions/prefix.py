"""Is a prefix cache worth it? What hits save of the prefills, against what looking up and keeping pages costs."""

from __future__ import annotations

from kvtool.advise import commands
from kvtool.advise.decision import decision
from kvtool.advise.serving import Serving, room_tokens
from kvtool.advise.situation import Situation
from kvtool.results import AdviseDecision

QUESTION = "A prefix cache?"
LOOKUP_SHARE = 0.01  # what one costs where nothing hits: vLLM states less than 1 % (its V1 announcement, January 2025)


def decide(situation: Situation, serving: Serving) -> AdviseDecision:
    """The share of the prefills' time that is saved by what the memory keeps."""
    traffic, copy = situation.traffic, serving.replica
    room = serving.replicas * room_tokens(copy, situation, serving.batch)
    found = traffic.hits_in(room) if traffic.hit_tokens else 0
    saved, ideal = (saved_share(serving, traffic.input_tokens, hit) for hit in (found, traffic.hit_tokens))
    yes = saved >= LOOKUP_SHARE
    return decision(
        QUESTION,
        "yes" if yes else "no",
        value=saved,
        threshold=LOOKUP_SHARE,
        unit="of the prefills' time",
        because=_because(situation, found, room),
        command=commands.traffic(situation),
        options={"what the memory keeps": saved, "everything kept": ideal},
    )


def saved_share(serving: Serving, tokens: int, hit: int) -> float:
    """Of a prefill's time."""
    return 1 - serving.replica.prefill_s(tokens, hit) / serving.replica.prefill_s(tokens)


def _because(situation: Situation, found: int, room: int) -> str:
    traffic = situation.traffic
    if not traffic.hit_tokens:
        return f"no prompt of {traffic.source} begins as one before it"
    kept = "" if room >= traffic.reused_tokens else f", {traffic.hit_tokens:,} if it kept all that comes again"
    return f"{found:,} of {traffic.input_tokens:,} prompt tokens are found: {room:,} tokens fit beside what runs{kept}"
