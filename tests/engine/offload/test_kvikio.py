"""Pages by kvikio, past host memory: what was written comes back or is a miss, and tokens are those without it."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch

from kvtool.cache.tiers.options import parse_tiers
from kvtool.engine.engine import Engine
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.offload.notices import Notices
from kvtool.engine.offload.page_file import HEADER_BYTES
from kvtool.engine.offload.page_io import WORKERS, StripeSums
from kvtool.machine.cu_file import CuFiles
from kvtool.system.errors import KvtoolError
from tests.engine.conftest import SaveTiny
from tests.engine.offload.disk_pages import PAGE_BYTES, file_of, open_tier, page, read, save
from tests.engine.offload.fake_kvikio import Kvikio, install
from tests.engine.requests import Request, run
from tests.engine.running import load, prompt

BLOCK, HIT_TOKENS = 4, 36
LONG = [Request(prompt(40, seed), 3, arrival=100 * turn) for turn in range(2) for seed in range(3)]


@pytest.fixture
def kvikio(monkeypatch: pytest.MonkeyPatch) -> Kvikio:
    return install(monkeypatch)


@pytest.fixture(scope="module")
def loaded(tiny: SaveTiny) -> LoadedModel:
    return load(tiny("llama-3-gqa").folder, block_size=BLOCK)


def engine_with(loaded: LoadedModel, tiers: str | None) -> Engine:
    loaded.notices = Notices()
    config = replace(loaded.config, tiers=None if tiers is None else parse_tiers(tiers))
    return Engine(loaded, num_pages=12, config=config, clock=lambda: 0.0)


def test_a_run_gives_the_tokens_of_one_without_and_its_pages_go_by_kvikio(
    loaded: LoadedModel, kvikio: Kvikio, tmp_path: Path
) -> None:
    expected = [one.output_ids for one in run(engine_with(loaded, None), LONG)]
    engine = engine_with(loaded, f"disk={tmp_path}:1MiB,kvikio")
    sequences = run(engine, LONG)
    assert [one.output_ids for one in sequences] == expected
    assert [one.cached_tokens for one in sequences] == [0, 0, 0, *[HIT_TOKENS] * 3]
    (disk,) = engine.tiers()
    engine.close()
    assert kvikio.moved == {"r": disk.bytes_out, "r+": disk.bytes_in}
    assert disk.bytes_out == 3 * HIT_TOKENS // BLOCK * loaded.page_bytes
    assert kvikio.threads == WORKERS
    assert (loaded.notices.lines, loaded.notices.remarks) == ([], [])
    again = engine_with(loaded, f"disk={tmp_path}:1MiB,kvikio")
    assert [one.output_ids for one in run(again, LONG[:1])] == expected[:1]
    assert again.tiers()[0].hit_tokens == HIT_TOKENS
    again.close()


def test_pages_come_back_whole_and_those_written_the_other_way_are_a_miss(kvikio: Kvikio, tmp_path: Path) -> None:
    notices, files = Notices(), CuFiles(WORKERS)
    tier = open_tier(tmp_path, notices, files=files)
    assert save(tier, range(2)) == 2
    assert [read(tier, number) for number in range(2)] == [page(0), page(1)]
    tier.close()
    assert notices.lines == []
    by_host = open_tier(tmp_path, notices)
    assert read(by_host, 0) is None
    save(by_host, range(3, 4))
    by_host.close()
    again = open_tier(tmp_path, notices, files=files)
    assert [read(again, number) for number in (0, 1, 3)] == [None, page(1), None]
    again.close()
    assert [line.partition("file was ")[2].split()[0] for line in notices.lines] == ["foreign;"]


@pytest.mark.parametrize("place", [0, 12, 60, 2000, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + PAGE_BYTES - 1])
def test_a_flipped_bit_and_a_cut_are_a_miss_wherever_they_are(kvikio: Kvikio, tmp_path: Path, place: int) -> None:
    notices = Notices()
    tier = open_tier(tmp_path, notices, files=CuFiles(WORKERS))
    save(tier, range(3))
    data = bytearray(file_of(tmp_path, 0).read_bytes())
    data[place] ^= 1 << place % 8
    file_of(tmp_path, 0).write_bytes(data)
    os.truncate(file_of(tmp_path, 1), place)
    assert [read(tier, number) for number in range(3)] == [None, None, page(2)]
    tier.close()
    told = [line.partition("file was ")[2].split(";")[0] for line in notices.lines]
    assert told == ["corrupt", "truncated"]


def test_a_full_disk_ends_the_tier_with_one_warning(kvikio: Kvikio, tmp_path: Path) -> None:
    notices = Notices()
    tier = open_tier(tmp_path, notices, files=CuFiles(WORKERS))
    kvikio.room = 2 * PAGE_BYTES
    save(tier, range(5))
    assert [read(tier, number) for number in range(5)] == [None] * 5
    tier.close()
    assert len(notices.lines) == 1
    assert "the disk is full; this run goes on without a disk tier" in notices.lines[0]
    assert len(list((tmp_path / "kvtool-cache").iterdir())) == 2, "what was not written whole is gone"


@pytest.mark.parametrize("gds", [False, None])
def test_a_machine_without_gpudirect_storage_is_told_in_the_answer(
    loaded: LoadedModel, kvikio: Kvikio, tmp_path: Path, gds: bool | None
) -> None:
    kvikio.gds = gds
    engine_with(loaded, f"disk={tmp_path}:1MiB,kvikio").close()
    told = "disk tier: GPUDirect Storage is not here, so kvikio moves pages through host memory"
    assert told in loaded.notices.remarks


def test_it_is_refused_by_name_where_it_is_not_installed(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "kvikio", None)
    with pytest.raises(KvtoolError, match=r"^kvikio cannot be used here .*pip install 'kvtool\[kvikio\]'$"):
        engine_with(loaded, f"disk={tmp_path}:1MiB,kvikio")
    assert not list(tmp_path.iterdir())


def test_sums_are_those_of_the_definition_and_a_bit_changes_that_of_its_stripe() -> None:
    """In whole numbers of Python, for stripes of four words."""
    random, sums = Random(0), StripeSums(16, torch.device("cpu"))
    content = bytearray(random.randbytes(41))
    factors = Random("kvtool page").randbytes(32)

    def defined(stripe: bytes) -> int:
        words = [int.from_bytes(stripe.ljust(16, b"\0")[i : i + 4], "little", signed=True) for i in range(0, 16, 4)]
        numbers = [int.from_bytes(factors[i : i + 8], "little") for i in range(0, 32, 8)]
        return sum(a * b for a, b in zip(words, numbers, strict=True)) % 2**64 >> 32

    before = sums.of(torch.frombuffer(content, dtype=torch.uint8))
    assert before == [defined(bytes(content[start : start + 16])) for start in range(0, 41, 16)]
    for place in range(41):
        content[place] ^= 1 << random.randrange(8)
        after = sums.of(torch.frombuffer(content, dtype=torch.uint8))
        assert [one != other for one, other in zip(before, after, strict=True)] == [place // 16 == i for i in range(3)]
        before = after
