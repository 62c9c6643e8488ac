"""Every variant compiles for each target and keeps to its budget, with no GPU at hand.

`make aot` takes the installed Triton, which the versions are pinned to; `make aot TRITON=3.6.0` another one, as GPU
machines have, since what fits in registers differs between them. That one is downloaded once, and kept in the user's
cache folder. `make aot CARDS=90` compiles for that card alone.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import pytest
import triton

from tests.kernels.triton.budgets import (
    LOCAL_BYTES,
    MIN_DECODE_BUFFERS,
    MIN_PRODUCT_BUFFERS,
    RESIDENT_DECODES,
    SHARED_BYTES,
    WGMMA_ROWS,
)

pytestmark = pytest.mark.aot
REPOSITORY = Path(__file__).parents[3]
INSTALLED = triton.__version__
TRITON = os.environ.get("KVTOOL_TRITON") or INSTALLED
MARKS = () if TRITON == INSTALLED else pytest.mark.network
CARDS = [int(card) for card in (os.environ.get("KVTOOL_CARDS") or ",".join(map(str, SHARED_BYTES))).split(",")]
TARGETS = [pytest.param((TRITON, capability), id=f"{TRITON}-sm_{capability}", marks=MARKS) for capability in CARDS]


@dataclass(frozen=True)
class Built:
    capability: int
    rows: list[dict[str, object]]

    def over(self, column: str, limit: int) -> dict[str, object]:
        """The variants that exceed a budget, and by what they do."""
        return {row["name"]: row[column] for row in self.rows if row[column] > limit}

    def of(self, kernel: str) -> list[dict[str, object]]:
        found = [row for row in self.rows if row["kernel"] == kernel]
        assert found
        return found


@pytest.fixture(scope="module", params=TARGETS)
def built(request: pytest.FixtureRequest) -> Built:
    version, capability = request.param
    command = [sys.executable, "-m", "tests.kernels.triton.variants", str(capability)]
    path = [str(_fetched(version))] if version != INSTALLED else []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*path, str(REPOSITORY)])}
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    failed = {row["name"]: row["error"] for row in rows if row["error"]}
    assert len(rows) > 30
    assert not failed
    assert {row["triton"] for row in rows} == {version}
    return Built(capability, rows)


def _fetched(version: str) -> Path:
    """A folder with that Triton alone; it appears in the cache whole or not at all. Skips without a registry."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvtool-tests"
    folder = cache / f"triton-{version}"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = Path(mkdtemp(prefix="triton-", dir=cache))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--retries", "1", "--timeout", "20"]
    try:
        found = subprocess.run(
            [*pip, "--target", str(unfinished), f"triton=={version}"], capture_output=True, check=False
        )
        if found.returncode != 0:
            pytest.skip(f"no package registry can be reached for triton {version}")
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def test_nothing_spills(built: Built) -> None:
    assert not built.over("local_bytes", LOCAL_BYTES)


def test_shared_memory_fits(built: Built) -> None:
    assert not built.over("shared_bytes", SHARED_BYTES[built.capability])


def test_decode_keeps_loads_in_flight(built: Built) -> None:
    """fp32 has no tensor cores to feed, and a small card's shared memory no room beside a wide head."""
    wide = 128 if built.capability == 89 else 1024
    rows = [row for row in built.of("decode_kernel") if row["head_dim"] <= wide]
    rows = [row for row in rows if "fp32" not in (row["dtype"], row["cache_dtype"])]
    assert rows
    assert {row["name"]: row["buffers"] for row in rows if row["buffers"] < MIN_DECODE_BUFFERS} == {}


def test_long_prefill_multiplies_with_wgmma_on_hopper(built: Built) -> None:
    rows = [row for row in built.of("prefill_kernel") if row["block_m"] >= WGMMA_ROWS]
    assert rows
    assert all((row["wgmma"] > 0) == (built.capability == 90) for row in rows)


def test_mla_decode_of_many_heads_multiplies_with_wgmma_on_hopper(built: Built) -> None:
    """The tile of latents is read once for 64 heads."""
    rows = [row for row in built.of("decode_kernel") if row["operation"] == "mla_decode" and row["rows"] == 128]
    rows = [row for row in rows if row["cache_dtype"] in ("bf16", "fp16")]
    assert rows
    if built.capability == 90:
        assert {row["block_m"] for row in rows} == {WGMMA_ROWS}
    assert all((row["wgmma"] > 0) == (built.capability == 90) for row in rows)


def test_two_programs_of_few_mla_heads_are_resident(built: Built) -> None:
    """Of latents of 16 bits; the splits are made for as many."""
    rows = [row for row in built.of("decode_kernel") if row["operation"] == "mla_decode" and row["block_m"] == 16]
    rows = [row for row in rows if row["cache_dtype"] in ("bf16", "fp16") and row["seqs"] == 1]
    assert rows
    threads, shared = 8 * 32, SHARED_BYTES[built.capability]
    assert all(2 * row["registers"] * threads <= 65536 for row in rows)
    if shared > 200 * 1024:
        assert all(2 * (row["shared_bytes"] + 1024) <= shared + 1024 for row in rows)


def test_products_keep_weights_in_flight(built: Built) -> None:
    kinds = ("gemv_kernel", "product_kernel", "experts_kernel", "pair_inner_kernel", "pair_sum_kernel", "route_kernel")
    rows = [row for kind in kinds for row in built.of(kind)]
    rows = [row for row in rows if row["dtype"] != "fp32"]
    assert {row["name"]: row["buffers"] for row in rows if row["buffers"] < MIN_PRODUCT_BUFFERS} == {}


def test_products_of_tall_tiles_multiply_with_wgmma_on_hopper(built: Built) -> None:
    """Products are turned: the instruction's rows are those of the weight, however few tokens there are."""
    rows = [row for row in built.of("product_kernel") + built.of("experts_kernel") if row["block_n"] >= WGMMA_ROWS]
    rows = [row for row in rows if row["dtype"] != "fp32"]
    assert rows
    assert all((row["wgmma"] > 0) == (built.capability == 90) for row in rows)


def test_every_kernel_starts_early_and_waits_first_on_hopper(built: Built) -> None:
    """Where a card knows no such launch, none is compiled. The loads of a pipeline are not hoisted above the wait."""
    assert {row["name"] for row in built.rows if row["waits"] != (built.capability >= 90)} == set()


def test_tma_copies_what_is_read_by_descriptor(built: Built) -> None:
    rows = built.of("decode_kernel") + built.of("prefill_kernel")
    assert any(row["by_descriptor"] for row in rows) == (built.capability >= 90)
    assert {row["name"]: row["tma"] for row in rows if (row["tma"] > 0) != row["by_descriptor"]} == {}


def test_as_many_decode_programs_are_resident_as_splits_are_made_for(built: Built) -> None:
    """The common shape: heads of 128, 16 rows of 16 bits, pages of whole tiles, no scales beside the vectors."""
    rows = [row for row in built.of("decode_kernel") if (row["head_dim"], row["block_m"], row["page"]) == (128, 16, 64)]
    rows = [row for row in rows if "fp32" not in (row["dtype"], row["cache_dtype"]) and not row["vector_scales"]]
    assert rows
    resident = RESIDENT_DECODES[built.capability]
    threads = 4 * 32
    for row in rows:
        assert resident * row["registers"] * threads <= 65536, row["name"]
        assert resident * (row["shared_bytes"] + 1024) <= SHARED_BYTES[built.capability] + 1024, row["name"]
