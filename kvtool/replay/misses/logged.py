"""A log with its text: for each prompt the earlier one that is most like it, and what keeps it from sharing more."""

from __future__ import annotations

import re
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kvtool.replay.misses.differences import shared_length
from kvtool.replay.misses.losses import Losses
from kvtool.replay.misses.walk import Difference, differences
from kvtool.workloads.logs.entries import LogEntry

CHARACTERS_A_TOKEN = 4  # where there is no tokenizer
FIRST_ID = 0xE000  # ids as characters, behind those that stand for half of one
LAST_ID = 0x10FFFF - FIRST_ID
PIECES = re.compile(r"(?<=[\n.!?;:>}])\s*")


@dataclass(frozen=True, slots=True)
class Reading:
    """How an entry becomes text and token ids; without `encode` a token is CHARACTERS_A_TOKEN characters."""

    layout: Callable[[LogEntry], str]
    encode: Callable[[str], list[int]] | None = None
    decode: Callable[[list[int]], str] | None = None

    def prompt(self, entry: LogEntry) -> tuple[str, int]:
        """The text and its tokens. Token ids without a tokenizer become a character each."""
        ids = entry.token_ids
        if ids is not None:
            whole = all(0 <= token <= LAST_ID for token in ids)
            decoded = self.decode(ids) if self.decode is not None and whole else None
            return decoded or "".join(chr(FIRST_ID + min(max(token, 0), LAST_ID)) for token in ids), len(ids)
        text = entry.text if entry.messages is None else self.layout(entry)
        text = text or ""
        return text, len(self.encode(text)) if self.encode is not None else -(-len(text) // CHARACTERS_A_TOKEN)


class LogMisses:
    """What is lost in a log, prompt by prompt: from `least` tokens on. A hit is a multiple of `unit` tokens."""

    def __init__(self, losses: Losses, *, least: int, unit: int) -> None:
        self._losses, self._least, self._unit = losses, least, unit
        self._texts: list[str] = []
        self._sorted: list[str] = []
        self._last: dict[str, int] = {}

    def see(self, entries: Iterable[LogEntry], reading: Reading) -> None:
        for entry in entries:
            text, tokens = reading.prompt(entry)
            self._see(entry.line, text, tokens)

    def _see(self, line: int, text: str, tokens: int) -> None:
        per_character = tokens / len(text) if text else 0.0
        shared, neighbour = self._neighbour(text)
        shared_tokens = int(shared * per_character)
        lost = 0
        like = self._like(text)
        earlier = neighbour if like is None else self._texts[like]
        if earlier is not None:
            found = list(differences(earlier, text, int(self._least / per_character) if per_character else 1))
            lost = self._blame(line, found, text, shared, tokens)
        hit = shared_tokens // self._unit * self._unit
        if not hit and shared_tokens >= self._least:
            detail = f"{shared_tokens:,} tokens are shared, and a hit is a multiple of {self._unit:,}"
            self._losses.add("match_unit", str(self._unit), line, detail, shared_tokens, (tokens, hit))
        self._losses.count(tokens, hit=hit, changed_prefix=lost, block_tail=shared_tokens - hit)
        self._keep(text)

    def _blame(self, line: int, found: list[Difference], text: str, shared: int, tokens: int) -> int:
        """Note what each kind of difference costs beyond what is shared with any prompt; the tokens in all."""
        by_kind: dict[str, list[Difference]] = {}
        for one in found:
            by_kind.setdefault(one.kind, []).append(one)
        each = tokens / max(1, len(text))
        total = 0
        for kind, ones in by_kind.items():
            lost = int(sum(max(0, one.stop - max(one.resumes, shared)) for one in ones) * each)
            if lost < self._least:
                continue
            first = ones[0]
            where = f"from token {int(first.start * each):,} on"
            before = text[max(0, first.start - 24) : first.start]
            detail = f"{where}: {first.was!r} became {first.became!r}"
            self._losses.add(kind, before, line, detail, lost, (tokens, int(shared * each) + total))
            total += lost
        return total

    def _neighbour(self, text: str) -> tuple[int, str | None]:
        """Characters that the text shares with the head of any earlier one, and that one: a neighbour by letters."""
        place = bisect_left(self._sorted, text)
        near = self._sorted[max(0, place - 1) : place + 1]
        return max(((shared_length(one, text), one) for one in near), default=(0, None))

    def _like(self, text: str) -> int | None:
        """The earlier prompt with most of this one's lines and sentences, of each the last that has it."""
        votes: dict[int, int] = {}
        for piece in PIECES.split(text):
            if (index := self._last.get(piece)) is not None:
                votes[index] = votes.get(index, 0) + len(piece)
        return max(votes, key=lambda index: (votes[index], index)) if votes else None

    def _keep(self, text: str) -> None:
        index = len(self._texts)
        self._texts.append(text)
        insort(self._sorted, text)
        self._last.update((piece, index) for piece in PIECES.split(text) if piece)
