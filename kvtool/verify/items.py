"""The items of a Python repr that a log prints: `{'a': 1, ...}`, `Args(a=1, ...)` or bare `a=1, b=2`."""

from __future__ import annotations

from collections.abc import Iterator

_OPEN, _CLOSE = "([{", ")]}"


def read_items(text: str) -> dict[str, str]:
    """Key to value of what starts at the beginning of `text`, values as text without their quotes.

    Reprs of objects that Python could not read back stay one value each. An item that the end of the text cuts short
    is left out.
    """
    bracketed = text[:1] in _OPEN and text != ""
    found: dict[str, str] = {}
    for item in _split(text[1 if bracketed else 0 :], bracketed=bracketed):
        key, value = _key_and_value(item)
        if key:
            found[key] = value
    return found


def _split(text: str, *, bracketed: bool) -> Iterator[str]:
    """Text between commas outside all brackets and quotes, up to the bracket that closes it all."""
    depth, quote, start, escaped = 0, "", 0, False
    for position, character in enumerate(text):
        if quote:
            if character == quote and not escaped:
                quote = ""
            escaped = character == "\\" and not escaped
        elif character in "'\"":
            quote = character
        elif character in _OPEN:
            depth += 1
        elif character in _CLOSE:
            if depth == 0:
                yield text[start:position]
                return
            depth -= 1
        elif character == "," and depth == 0:
            yield text[start:position]
            start = position + 1
    if not bracketed and not quote and depth == 0:
        yield text[start:]


def _key_and_value(item: str) -> tuple[str, str]:
    """`'a': 'b'` and `a='b'` -> (a, b); a key of anything but letters, digits and underscores is none."""
    item = item.strip()
    separator = ":" if item[:1] in "'\"" else "="
    key, _, value = item.partition(separator)
    key = key.strip().strip("'\"")
    return (key if key.isidentifier() else ""), value.strip().strip("'\"")
