"""Lengths, sizes and durations: what users type, and how numbers are shown. Inside kvtool bytes and tokens are ints."""

from __future__ import annotations

import math
import re

from kvtool.system.errors import KvtoolError

KIB, MIB, GIB, TIB = 1024, 1024**2, 1024**3, 1024**4
_LENGTH_FACTOR = {"": 1, "k": 1024, "m": 1024**2}
_SIZE_FACTOR = {
    "": 1, "b": 1,
    "kib": KIB, "mib": MIB, "gib": GIB, "tib": TIB,
    "kb": 1000, "mb": 1000**2, "gb": 1000**3, "tb": 1000**4,
}  # fmt: skip
_NUMBER = r"(\d{1,24}(?:\.\d{1,24})?)"  # so many digits that no float overflows
MAX_LENGTH_TOKENS = 1 << 40
MAX_SIZE_BYTES = 1 << 60


def parse_length(text: str, what: str = "length") -> int:
    """Tokens of `8192`, `8k`, `1.5k`, `1m` (k = 1024, m = 1024²). Raises KvtoolError unless a whole number >= 1."""
    match = re.fullmatch(rf"{_NUMBER}([km]?)", text.strip().lower())
    if match is None:
        raise KvtoolError(f"{what} {text!r} is not a number of tokens: write 4096, 8k, 128k or 1m (k is 1024)")
    tokens = float(match[1]) * _LENGTH_FACTOR[match[2]] if "." in match[1] else int(match[1]) * _LENGTH_FACTOR[match[2]]
    if tokens != int(tokens) or not 1 <= tokens <= MAX_LENGTH_TOKENS:
        raise KvtoolError(f"{what} {text!r} must be a whole number of tokens from 1 to {MAX_LENGTH_TOKENS}")
    return int(tokens)


def parse_size(text: str, what: str = "size") -> int:
    """Bytes of `20GiB`, `80GB`, `512MiB` or a bare number. Raises KvtoolError for anything else, or above 1 EiB."""
    match = re.fullmatch(rf"{_NUMBER}\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _SIZE_FACTOR:
        raise KvtoolError(f"{what} {text!r} is not a size: write 20GiB, 80GB, 512MiB or bytes")
    factor = _SIZE_FACTOR[match[2]]
    size_bytes = int(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor
    if size_bytes > MAX_SIZE_BYTES:
        raise KvtoolError(f"{what} {text!r} is more than any machine holds: at most {MAX_SIZE_BYTES // TIB} TiB")
    return size_bytes


def split_list(text: str) -> list[str]:
    """The items of a comma list, without blanks: `"1, 8,32"` -> `["1", "8", "32"]`."""
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise KvtoolError(f"{text!r} has an empty item: write a list as 1,8,32")
    return items


def format_bytes(count: int) -> str:
    """A byte count for people: exact below 1 KiB, else three to four significant digits in binary units."""
    for factor, name in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(count) >= factor:
            value = count / factor
            return f"{value:.0f} {name}" if value == int(value) and value < 1000 else f"{value:.2f} {name}"
    return f"{count} B"


def format_bytes_short(count: int) -> str:
    """A byte count in at most four digits, for narrow columns: `12.8 GiB`, `512 MiB`."""
    value, _, unit = format_bytes(count).partition(" ")
    return f"{float(value):.3g} {unit}" if float(value) < 1000 else f"{float(value):.0f} {unit}"


def format_length(tokens: int) -> str:
    """`131072` -> `128k`, `1048576` -> `1m`, other numbers with thousands separators."""
    if tokens >= 1024**2 and tokens % 1024**2 == 0:
        return f"{tokens // 1024**2}m"
    return f"{tokens // 1024}k" if tokens >= 1024 and tokens % 1024 == 0 else f"{tokens:,}"


def format_ms(milliseconds: float | None) -> str:
    """Milliseconds with three significant digits, `-` when there is none."""
    if milliseconds is None:
        return "-"
    if milliseconds == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(milliseconds))))
    return f"{milliseconds:,.{min(digits, 4)}f}"


def ceil_div(a: int, b: int) -> int:
    """The smallest integer not below a / b."""
    return -(-a // b)


def round_up(value: int, multiple: int) -> int:
    """`value` rounded up to the next multiple."""
    return ceil_div(value, multiple) * multiple
