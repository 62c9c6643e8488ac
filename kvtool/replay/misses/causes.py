"""What in a text keeps two prompts from sharing more, by name.

A cause is a step over a difference: the places from which two prompts go on, if what parts them is of that kind. Steps
are tried from the most particular to the most general, so that a date is not taken for a number.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_DAY = r"(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,?\s+"
_CLOCK = r"\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?(?:\s?[ap]m)?(?:\s?(?:z|utc|gmt|[+-]\d{2}:?\d{2}))?"
TIME = re.compile(
    rf"(?:{_DAY})?(?:\d{{4}}[-/.]\d{{1,2}}[-/.]\d{{1,2}}|\d{{1,2}}[-/.]\d{{1,2}}[-/.]\d{{2,4}}"
    rf"|\d{{1,2}}\s+{_MONTH},?\s+\d{{4}}|{_MONTH}\s+\d{{1,2}}(?:st|nd|rd|th)?,?\s+\d{{4}})(?:[t ,]+{_CLOCK})?"
    rf"|\b{_CLOCK}|\b1[4-9]\d{{8}}(?:\d{{3}}|\d{{6}})?(?:\.\d+)?\b",
    re.IGNORECASE,
)
UUID = re.compile(
    r"\b[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}\b|\b(?=[0-9a-f]*\d)[0-9a-f]{12,}\b"
    r"|\b[a-z]{2,10}[-_](?=[A-Za-z0-9]*\d)[A-Za-z0-9]{12,}\b",
    re.IGNORECASE,
)
NUMBER = re.compile(r"\d+")
BLANK = re.compile(r"\s+")
BOS = re.compile(r"^(?:<s>|<bos>|\[BOS\]|\[CLS\]|<\|begin_?of_?text\|>|<\|startoftext\|>|<｜begin▁of▁sentence｜>)+")
_ROLE = r"(?:system|user|assistant|tool|ipython|developer)"
MARKUP = re.compile(
    rf"<\|(?:im_start|start_header_id|header_start)\|>\s*{_ROLE}?"
    r"|<\|[^<>|\n]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|</?(?:start_of_turn|end_of_turn|think|bos|eos)>"
    r"|<｜[^<>｜\n]{1,40}｜>"
    r"|^#{1,3} ?(?:System|User|Assistant|Instruction|Response):?$|^(?:System|User|Assistant|Human):",
    re.MULTILINE | re.IGNORECASE,
)
MARKS = re.compile(rf"(?:{MARKUP.pattern}|\s)+", re.MULTILINE | re.IGNORECASE)

Places = tuple[int, int]
Step = Callable[[str, str, int, int], Places | None]
NEAR = 80  # characters before and behind a difference in which a pattern of it stands


def _pattern(pattern: re.Pattern[str]) -> Step:
    """Both have one of the pattern, that begins before they part."""

    def step(a: str, b: str, i: int, j: int) -> Places | None:
        found_a, found_b = _around(pattern, a, i), _around(pattern, b, j)
        if found_a is None or found_b is None or i - found_a[0] != j - found_b[0]:
            return None
        return found_a[1], found_b[1]

    return step


def _around(pattern: re.Pattern[str], text: str, at: int) -> Places | None:
    start = max(0, at - NEAR)
    spans = (match.span() for match in pattern.finditer(text, start, at + NEAR))
    return next((span for span in spans if span[0] <= at <= span[1]), None)


def _bos(a: str, b: str, i: int, j: int) -> Places | None:
    """One begins with another number of tokens that begin a text."""
    ends = [match.end() if (match := BOS.match(text)) else 0 for text in (a, b)]
    return (ends[0], ends[1]) if i == j and ends[0] != ends[1] and i <= max(ends) else None


def _blanks(a: str, b: str, i: int, j: int) -> Places | None:
    """They agree again behind blanks, of which at least one has some here."""
    while i and j and a[i - 1].isspace() and b[j - 1].isspace():
        i, j = i - 1, j - 1
    return _agreeing(a, b, *(_behind(BLANK, text, at) for text, at in ((a, i), (b, j))), start=(i, j))


def _markup(a: str, b: str, i: int, j: int) -> Places | None:
    """They agree again behind marks of a template, of which at least one has some here."""
    begun = [i - span[0] for text, at in ((a, i), (b, j)) if (span := _around(MARKUP, text, at)) is not None]
    if not begun or max(begun) > min(i, j):
        return None
    start = (i - max(begun), j - max(begun))
    return _agreeing(a, b, *(_behind(MARKS, text, at) for text, at in zip((a, b), start, strict=True)), start=start)


def _agreeing(a: str, b: str, i: int, j: int, *, start: Places) -> Places | None:
    moved = (i, j) != start
    return (i, j) if moved and a[i : i + 1] == b[j : j + 1] != "" else None


def _behind(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return at if match is None else match.end()


def _letters(a: str, b: str, i: int, j: int) -> Places | None:
    """The same characters in another case, or in another Unicode form."""
    for length_a in (1, 2, 3):
        for length_b in (1, 2, 3):
            left, right = a[i : i + length_a], b[j : j + length_b]
            if left and right and _folded(left) == _folded(right):
                return i + length_a, j + length_b
    return None


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


STEPS: dict[str, Step] = {
    "bos": _bos,
    "timestamp": _pattern(TIME),
    "uuid": _pattern(UUID),
    "counter": _pattern(NUMBER),
    "white_space": _blanks,
    "template": _markup,
    "letters": _letters,
}
REMEDIES = {
    "bos": "let one place add the token that begins a text: the template or the tokenizer",
    "timestamp": "put the time behind what is shared, or cut it to the day",
    "uuid": "put ids of requests and sessions behind what is shared, or leave them out",
    "counter": "put the number behind what is shared",
    "white_space": "write blanks and line ends in one way",
    "template": "use one chat template, in one version",
    "letters": "write letters in one way: upper or lower case, one Unicode form",
    "tools_order": "list tools in one order",
    "documents_order": "put documents in one order, those shared by most first",
    "truncated_history": "cut a history rarely and much at a time, or keep its head: each cut costs all behind it",
    "inserted_text": "put what is new behind what is shared",
    "changed_text": "put what changes behind what is shared",
    "match_unit": "share more than a match unit, or run with a smaller one",
    "evicted": "give the cache more room: kvtool replay TRACE draws the hits at every capacity",
    "changed_prefix": "keep what stands before shared text the same: kvtool trace misses LOG names what changed",
    "block_tail": "smaller blocks lose less at the end of each prompt",
}
