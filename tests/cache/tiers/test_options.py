"""--tiers and --write-policy: what they mean, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvtool.cache.tiers.options import TierOptions, WritePolicy, parse_tiers
from kvtool.system.errors import KvtoolError
from kvtool.units import GIB

BACK, THIRD_HIT = WritePolicy(kind="back"), WritePolicy(kind="selective", hits=3)


@pytest.mark.parametrize(
    ("text", "write", "expected"),
    [
        ("dram=4GiB", "through", TierOptions(dram_bytes=4 * GIB)),
        ("disk=/a:b:20GiB", "back", TierOptions(disk_folder=Path("/a:b"), disk_bytes=20 * GIB, write=BACK)),
        (
            "dram=1GiB, disk=x:2GiB",
            "selective:3",
            TierOptions(dram_bytes=GIB, disk_folder=Path("x"), disk_bytes=2 * GIB, write=THIRD_HIT),
        ),
        ("dram=1GiB,exclusive", "back", TierOptions(dram_bytes=GIB, exclusive=True, write=BACK)),
        ("disk=x:1GiB,kvikio", "through", TierOptions(disk_folder=Path("x"), disk_bytes=GIB, kvikio=True)),
    ],
)  # fmt: skip
def test_tiers_are_read(text: str, write: str, expected: TierOptions) -> None:
    assert parse_tiers(text, write) == expected


@pytest.mark.parametrize(
    ("text", "write", "message"),
    [
        ("ram=4GiB", "through", "'ram=4GiB' is no tier: write dram=4GiB"),
        ("dram", "through", "'dram' is not complete"),
        ("dram=", "through", "'dram=' is not complete"),
        ("dram=0", "through", "dram has no room"),
        ("dram=lots", "through", "--tiers dram 'lots' is not a size"),
        ("dram=1GiB,dram=2GiB", "through", "names dram twice"),
        ("disk=20GiB", "through", "disk=20GiB does not say how much"),
        ("disk=a\0b:1GiB", "through", "no folder's name has a null character"),
        ("exclusive", "back", "names no tier"),
        ("dram=1GiB,exclusive", "through", "it needs dram=SIZE and --write-policy back"),
        ("dram=1GiB,kvikio", "through", "it needs disk=FOLDER:SIZE, and no dram"),
        ("dram=1GiB,disk=x:1GiB,kvikio", "through", "it needs disk=FOLDER:SIZE, and no dram"),
        ("dram=1GiB", "selective", "'selective' is not one of through, selective:K"),
        ("dram=1GiB", "selective:0", "'selective:0' is not one of"),
        ("dram=1GiB", "bakc", "did you mean back?"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(text: str, write: str, message: str) -> None:
    with pytest.raises(KvtoolError, match=message) as error:
        parse_tiers(text, write)
    assert "\n" not in str(error.value)
