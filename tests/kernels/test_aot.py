"""Every attention variant compiles for each target and keeps to its budget, with no GPU at hand (`make aot`)."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvtool.kernels.budgets import LOCAL_BYTES, MIN_DECODE_BUFFERS, SHARED_BYTES, WGMMA_ROWS

pytestmark = pytest.mark.aot
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Built:
    capability: int
    rows: list[dict[str, object]]

    def over(self, column: str, limit: int) -> dict[str, object]:
        """The variants that exceed a budget, and by what they do."""
        return {row["name"]: row[column] for row in self.rows if row[column] > limit}


@pytest.fixture(scope="module", params=SHARED_BYTES)
def built(request: pytest.FixtureRequest) -> Built:
    command = [sys.executable, "-m", "tests.kernels.variants", str(request.param)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    failed = {row["name"]: row["error"] for row in rows if row["error"]}
    assert len(rows) > 10
    assert not failed
    return Built(request.param, rows)


def test_nothing_spills(built: Built) -> None:
    assert not built.over("local_bytes", LOCAL_BYTES)


def test_shared_memory_fits(built: Built) -> None:
    assert not built.over("shared_bytes", SHARED_BYTES[built.capability])


def test_decode_keeps_loads_in_flight(built: Built) -> None:
    """fp32 has no tensor cores to feed, and a small card's shared memory no room beside a wide head."""
    wide = 128 if built.capability == 89 else 1024
    rows = [row for row in built.rows if row["kernel"] == "decode_kernel" and row["head_dim"] <= wide]
    rows = [row for row in rows if "fp32" not in (row["dtype"], row["cache_dtype"])]
    assert rows
    assert {row["name"]: row["buffers"] for row in rows if row["buffers"] < MIN_DECODE_BUFFERS} == {}


def test_long_prefill_multiplies_with_wgmma_on_hopper(built: Built) -> None:
    rows = [row for row in built.rows if row["kernel"] == "prefill_kernel" and row["block_m"] >= WGMMA_ROWS]
    assert rows
    assert all((row["wgmma"] > 0) == (built.capability == 90) for row in rows)
