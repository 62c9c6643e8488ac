"""How a line becomes numbers, flags or a refusal: one table of patterns an engine, one pass for all of them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from kvtool.units import MIB
from kvtool.verify.facts import Figure, LogFacts, Reading, Refusal, exactly, gib, rounded
from kvtool.verify.items import read_items

_RANK = re.compile(r"(?:Worker_|\b)((?:[DP]P\d+[_ ])*[TP]P\d+)|\brank[= ](\d+)|\bdevice=(\w+)")
_PART = re.compile(r"(\{\w+:\w+\}| ?\.\.\. ?)")
_ANY_TEXT = r".{0,4000}?"
_ERROR = "Error: "
_LONGEST_MESSAGE, _LONGEST_NUMBER, _LARGEST_NUMBER = 400, 24, 1 << 60
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": MIB, "GiB": 1 << 30, "TiB": 1 << 40}
_KINDS = {
    "gib": r"-?\d+(?:\.\d+)?",
    "mib": r"\d+(?:\.\d+)?",
    "floormib": r"\d+",
    "size": r"\d+(?:\.\d+)? [KMGT]?i?B",
    "count": r"\d[\d,]*",
    "ratio": r"\d+(?:\.\d+)?",
    "flag": r"[\w.-]*\w",
    "text": r"[^\s,)]*\w",
    "items": r".*",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """`marker` is a fixed part of the line, looked for before the regular expression is tried.

    Named groups say what they hold by their ending: `weights_gib`, `cache_mib`, `block_floormib` (cut to whole MiB),
    `required_size` (with its unit), `num_blocks_count` (a whole number), `tokens_number`
    (as Prometheus writes it) and `max_concurrency_ratio` become readings of the name before it, `max_model_len_flag`
    becomes a flag, `version_text` is kept as it is, and `args_items` is a Python repr of flags. `refusal` makes the
    line a refusal of that kind; `starts` says that an engine's log begins with it.
    """

    marker: str
    regex: re.Pattern[str]
    refusal: str | None = None
    starts: bool = False


def pattern(marker: str, regex: str) -> Pattern:
    """A pattern with its expression compiled."""
    return Pattern(marker=marker, regex=re.compile(regex))


def template(text: str, *, refusal: str | None = None, starts: bool = False) -> Pattern:
    """A pattern from a line as it is printed: `{weights:gib}` is a group, `...` any text, the rest is literal.

    One `...` at most: the time that junk can cost stays short.
    """
    parts = _PART.split(text)
    literals = parts[::2]
    regex = re.escape(literals[0])
    for part, literal in zip(parts[1::2], literals[1:], strict=True):
        name, _, kind = part.strip("{}").partition(":")
        regex += (f"(?P<{name}_{kind}>{_KINDS[kind]})" if kind else _ANY_TEXT) + re.escape(literal)
    return Pattern(marker=max(literals, key=len), regex=re.compile(regex), refusal=refusal, starts=starts)


@dataclass(slots=True, kw_only=True)
class Collected:
    """What one pass over a log has found so far; `start` is the number of the engine start it is in."""

    readings: list[Reading] = field(default_factory=list)
    flags: dict[int, dict[str, str]] = field(default_factory=dict)
    texts: dict[int, dict[str, str]] = field(default_factory=dict)
    refusals: dict[int, Refusal] = field(default_factory=dict)
    begun: set[int] = field(default_factory=set)
    start: int = 0

    def take(self, found: Pattern, match: re.Match[str], line: str) -> None:
        """Keep what the groups of the match hold."""
        if found.starts and (self.start in self.begun or self.start in self.refusals or self._measured()):
            self.start += 1
        if found.starts and any(name.endswith("_items") for name in match.groupdict()):
            self.begun.add(self.start)
        for name, text in match.groupdict().items():
            if text is not None:
                self._take_group(name, text, rank_of(line))
        if found.refusal is not None:
            self.refusals.setdefault(self.start, Refusal(kind=found.refusal, line=_message(match)))

    def _measured(self) -> bool:
        return bool(self.readings) and self.readings[-1].start == self.start

    def _take_group(self, name: str, text: str, rank: str) -> None:
        term, _, kind = name.rpartition("_")
        if kind == "flag":
            self.flags.setdefault(self.start, {})[term] = text
        elif kind == "items":
            self.flags.setdefault(self.start, {}).update(read_items(text))
        elif kind == "text":
            self.texts.setdefault(self.start, {}).setdefault(term, text)
        elif (figure := _figure(kind, text)) is not None:
            self.readings.append(Reading(term=term, figure=figure, rank=rank, start=self.start))


def rank_of(line: str) -> str:
    """The worker's name in the line's prefix: `TP1`, `DP0 TP3`, the device's in Ollama's, "" where there is none."""
    match = _RANK.search(line[:160])
    return "" if match is None else (match[1] or match[3] or f"TP{match[2]}").replace("_", " ")


def _message(match: re.Match[str]) -> str:
    """The engine's sentence: from the name of its error, else from what was matched, to the end of the line."""
    error = match.string.rfind(_ERROR, 0, match.start())
    start = match.start() if error < 0 else error + len(_ERROR)
    return match.string[start : start + _LONGEST_MESSAGE].strip()


def _figure(kind: str, text: str) -> Figure | None:
    try:
        if kind == "gib":
            return gib(text[:_LONGEST_NUMBER])
        if kind == "mib":
            return rounded(float(text[:_LONGEST_NUMBER]), len(text.partition(".")[2]), MIB)
        if kind == "floormib":
            whole = int(text[:_LONGEST_NUMBER])
            return Figure(value=whole * MIB, low=whole * MIB, high=(whole + 1) * MIB - 1)
        if kind == "size":
            number, unit = text[:_LONGEST_NUMBER].split()
            return rounded(float(number), len(number.partition(".")[2]), _UNITS[unit])
        if kind == "ratio":
            return rounded(float(text), len(text.partition(".")[2])) if len(text) < _LONGEST_NUMBER else None
        count = int(float(text)) if kind == "number" else int(text[:_LONGEST_NUMBER].replace(",", ""))
        return exactly(count) if count <= _LARGEST_NUMBER else None
    except (ValueError, OverflowError, KeyError):
        return None


def collect(windows: Iterable[tuple[str, str]], patterns: tuple[Pattern, ...]) -> Collected:
    """One pass over the lines of a log; a message that its line does not hold whole is tried with the next ones."""
    collected = Collected()
    for line, following in windows:
        for candidate in patterns:
            if candidate.marker in line:
                match = candidate.regex.search(line) or candidate.regex.search(f"{line} {following}")
                if match is not None:
                    collected.take(candidate, match, line)
    return collected


def facts(engine: str, collected: Collected, *, model_flags: tuple[str, ...]) -> LogFacts | None:
    """The last start that measured or refused something, with its flags; None where none did and no flag was read.

    A report may quote the flags after the numbers: flags of another start serve where this one has none.
    """
    told = [reading.start for reading in collected.readings] + list(collected.refusals)
    if not told and not collected.flags:
        return None
    start = max(told, default=max(collected.flags, default=0))
    flags = collected.flags.get(start) or next(reversed(collected.flags.values()), {})
    texts = collected.texts.get(start) or next(reversed(collected.texts.values()), {})
    named = (flags.get(name) for name in model_flags)
    return LogFacts(
        engine=engine,
        version=texts.get("version"),
        model=next((name for name in named if name not in (None, "None", "")), texts.get("model")),
        flags=flags,
        readings=tuple(reading for reading in collected.readings if reading.start == start),
        refusal=collected.refusals.get(start),
        starts=len({*told, start}),
    )
