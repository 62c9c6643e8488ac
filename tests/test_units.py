"""What users type as lengths and sizes: read exactly, or refused in one line, however long it is."""

from __future__ import annotations

import pytest

from kvtool.system.errors import KvtoolError
from kvtool.units import GIB, MAX_SIZE_BYTES, format_bytes, parse_length, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("20GiB", 20 * GIB), ("80gb", 80 * 10**9), ("1.5 GiB", 3 * GIB // 2), ("0", 0)]
)
def test_a_size(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("digits", [20, 25, 400, 5000])
@pytest.mark.parametrize("tail", ["", ".5", "GiB"])
def test_a_number_without_end_is_refused(digits: int, tail: str) -> None:
    for parse in (parse_size, parse_length):
        with pytest.raises(KvtoolError):
            parse("9" * digits + tail)


def test_the_largest_size_can_be_shown() -> None:
    assert float(format_bytes(parse_size(str(MAX_SIZE_BYTES))).removesuffix(" TiB")) == 1 << 20
    with pytest.raises(KvtoolError, match="at most 1048576 TiB"):
        parse_size(str(MAX_SIZE_BYTES + 1))
