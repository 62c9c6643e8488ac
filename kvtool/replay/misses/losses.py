"""What misses cost, summed up by cause: one finding for all requests that differ in the same way at the same place."""

from __future__ import annotations

from dataclasses import dataclass

from kvtool.replay.misses.causes import REMEDIES
from kvtool.replay.saved import PrefillFloor
from kvtool.results import TraceFinding


@dataclass(slots=True)
class _Family:
    kind: str
    line: int | None
    detail: str
    requests: int = 0
    tokens: int = 0
    ms: float = 0.0


class Losses:
    """Families of misses, and where the tokens of all prompts went. `floor` gives milliseconds, at a card's figures."""

    def __init__(self, floor: PrefillFloor | None = None) -> None:
        self._floor = floor
        self._families: dict[tuple[str, str], _Family] = {}
        self.missed = {"hit": 0, "evicted": 0, "changed_prefix": 0, "block_tail": 0, "never_seen": 0}
        self.prompt_tokens = 0

    def add(self, kind: str, where: str, line: int | None, detail: str, tokens: int, prompt: tuple[int, int]) -> None:
        """`tokens` of a prompt (its tokens, of which so many hit) were lost. `where` tells families of a kind apart."""
        family = self._families.setdefault((kind, where), _Family(kind, line, detail))
        family.requests += 1
        family.tokens += tokens
        if self._floor is not None:
            length, hit = prompt
            family.ms += self._floor.lost_ms(length, hit, tokens)

    def count(self, tokens: int, **gone: int) -> None:
        """A prompt's tokens; those without a name in `gone` were never seen before."""
        self.prompt_tokens += tokens
        for name, value in gone.items():
            self.missed[name] += value
        self.missed["never_seen"] += tokens - sum(gone.values())

    def findings(self) -> list[TraceFinding]:
        """The costliest first."""
        families = sorted(self._families.values(), key=lambda one: (-one.tokens, one.line or 0, one.kind))
        return [
            TraceFinding(
                kind=one.kind,
                line=one.line,
                detail=one.detail + (f" (and {one.requests - 1:,} requests like it)" if one.requests > 1 else ""),
                tokens_lost=one.tokens,
                ms_lost=None if self._floor is None else one.ms,
                remedy=REMEDIES[one.kind],
            )
            for one in families
        ]
