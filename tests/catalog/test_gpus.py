from __future__ import annotations

import pytest

from kvtool.catalog.gpus import find_gpu, load_gpus
from kvtool.errors import KvtoolError


def test_all_cards_are_there_and_whole() -> None:
    gpus = load_gpus()
    assert len(gpus) == 37
    assert len({gpu.name for gpu in gpus}) == 37
    for gpu in gpus:
        assert gpu.memory_bytes > 10**10
        assert gpu.memory_bandwidth_gbps is not None
        assert gpu.source
        assert gpu.confidence in {"high", "medium"}


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("h100", "H100-SXM-80GB"),
        ("H100-SXM-80GB", "H100-SXM-80GB"),
        ("h100-pcie", "H100-PCIe-80GB"),
        ("h100-nvl", "H100-NVL-94GB"),
        ("l40s", "L40S-48GB"),
        ("l40", "L40-48GB"),
        ("l4", "L4-24GB"),
        ("a10", "A10-24GB"),
        ("a100", "A100-SXM-80GB"),
        ("A100-40GB", "A100-SXM-40GB"),
        ("rtx4090", "RTX-4090-24GB"),
        ("rtx 4090", "RTX-4090-24GB"),
        ("mi300x", "MI300X-192GB"),
        ("tpu-v5e", "TPU-v5e"),
    ],
)
def test_names_that_people_type(typed: str, name: str) -> None:
    assert find_gpu(typed).name == name


def test_every_own_name_and_alias_finds_its_card() -> None:
    for gpu in load_gpus():
        assert all(find_gpu(name) == gpu for name in (gpu.name, gpu.name.lower(), *gpu.aliases))


def test_a_short_name_of_several_cards_lists_them() -> None:
    with pytest.raises(KvtoolError, match=r"gpu 'rtx' fits several cards: write one of RTX-3090-24GB"):
        find_gpu("rtx")


@pytest.mark.parametrize(("typed", "near"), [("h1000", "h100"), ("l40x", "L4")])
def test_a_typo_gets_the_nearest_names(typed: str, near: str) -> None:
    with pytest.raises(KvtoolError, match=f"unknown gpu '{typed}': did you mean .*{near}"):
        find_gpu(typed)


def test_reported_memory_beats_the_decimal_figure() -> None:
    l40s, h100 = find_gpu("l40s"), find_gpu("h100")
    assert (l40s.memory_bytes, l40s.memory_assumed) == (48_305_799_168, False)
    assert (h100.memory_bytes, h100.memory_assumed) == (80_000_000_000, True)
    assert (h100.memory_bandwidth_gbps, h100.bf16_tflops, h100.compute_units) == (3350, 989, 132)
