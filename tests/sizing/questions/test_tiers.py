from __future__ import annotations

import msgspec
import pytest

from kvtool.catalog.gpus import Gpu
from kvtool.results import SizeTier
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.questions.tiers import Places
from kvtool.sizing.size import size
from kvtool.system.errors import KvtoolError
from kvtool.units import GIB, MIB
from tests.sizing.example import CARD, DEEPSEEK_V3, LLAMA_8B, LLAMA_8B_POOL_BYTES, NEMOTRON_H

H100 = msgspec.structs.replace(CARD, compute_units=132, register_file_bytes=262_144, l2_bytes=50 * MIB, pcie_gbps=64.0)
NODE = Places(dram_bytes=256 * GIB, nvme_bytes=10**12, nvme_gbps=7.0)


def tiers(
    model: object = LLAMA_8B, gpu: Gpu | None = H100, places: Places = NODE, **options: object
) -> dict[str, SizeTier]:
    options = {"contexts": (8192,), **options}
    row = size(model, options=SizeOptions(gpu=gpu, places=places, **options)).rows[0]  # type: ignore[arg-type]
    assert row.tiers is not None
    return {tier.name: tier for tier in row.tiers}


def test_llama_at_8k_by_hand() -> None:
    """16 tokens take 2 MiB, a sequence of 8,192 tokens 1 GiB; 132 SMs x 256 KiB = 33 MiB of registers."""
    pool = LLAMA_8B_POOL_BYTES
    found = tiers(batch_sizes=(16,))
    assert list(found) == ["registers", "l2", "hbm", "dram", "nvme"]
    assert {tier.batch_bytes for tier in found.values()} == {16 * GIB}
    held = {name: (tier.capacity_bytes, tier.tokens, tier.sequences) for name, tier in found.items()}
    assert held["registers"] == (33 * MIB, 16 * 16, 0)
    assert held["l2"] == (50 * MIB, 25 * 16, 0)
    assert held["hbm"] == (pool, pool // (2 * MIB) * 16, 51)
    assert held["dram"] == (256 * GIB, 256 * 8192, 256)
    assert held["nvme"] == (10**12, 10**12 // (2 * MIB) * 16, 931)
    assert found["dram"].batch_share == 1 / 16


def test_reloading_a_sequence_takes_its_bytes_over_the_link() -> None:
    found = tiers()
    assert found["dram"].reload_ms == pytest.approx(GIB / 64e9 * 1e3)
    assert found["nvme"].reload_ms == pytest.approx(GIB / 7e9 * 1e3)
    assert found["hbm"].reload_ms is None
    fast = tiers(places=Places(nvme_bytes=10**12, nvme_gbps=100.0))["nvme"]
    assert (fast.reload_gbps, fast.reload_ms) == (64.0, pytest.approx(GIB / 64e9 * 1e3))  # PCIe is slower


def test_gpus_hold_their_part_and_the_node_the_whole() -> None:
    found = tiers(parallel=Parallel(tp=4))
    assert (found["hbm"].batch_bytes, found["dram"].batch_bytes) == (GIB // 4, GIB)
    assert found["dram"].reload_ms == pytest.approx(GIB / 4 / 64e9 * 1e3)  # each GPU over its own link
    latent = tiers(DEEPSEEK_V3, parallel=Parallel(tp=8))
    assert latent["hbm"].batch_bytes == latent["dram"].batch_bytes == 8192 * 70_272


def test_what_is_not_known_is_left_open() -> None:
    bare = tiers(gpu=CARD, places=Places(nvme_bytes=10**12))
    assert bare["registers"].capacity_bytes is bare["l2"].sequences is bare["nvme"].reload_ms is None
    assert list(tiers(gpu=None)) == ["dram", "nvme"]


def test_a_shared_prefix_counts_once() -> None:
    found = tiers(batch_sizes=(50,), shared_prefix=4096)
    assert found["dram"].batch_bytes == GIB // 2 + 50 * GIB // 2
    assert found["dram"].sequences == 511


def test_a_cache_that_does_not_grow_has_no_end() -> None:
    from dataclasses import replace

    states = replace(NEMOTRON_H, layers=NEMOTRON_H.layers[:2])
    assert tiers(states)["dram"].tokens is None


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"nvme_gbps": 7.0}, "give its size too"),
        ({"nvme_bytes": 1, "nvme_gbps": 0.0}, "--nvme-gbps 0 must be above 0"),
        ({"nvme_bytes": 1, "nvme_gbps": float("nan")}, "--nvme-gbps nan must be above 0"),
    ],
)
def test_places_are_checked(places: dict[str, float], message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        Places(**places)  # type: ignore[arg-type]


def test_tiers_need_a_card_or_a_capacity() -> None:
    with pytest.raises(KvtoolError, match="name it with --gpu, or give --dram or --nvme"):
        SizeOptions(places=Places())
    assert size(LLAMA_8B).rows[0].tiers is None
