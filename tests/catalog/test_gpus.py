from __future__ import annotations

import pytest

from kvtool.catalog.gpus import find_gpu, load_gpus, with_memory
from kvtool.system.errors import KvtoolError


def test_all_cards_are_there_and_whole() -> None:
    gpus = load_gpus()
    assert len(gpus) == 113
    assert len({gpu.name for gpu in gpus}) == 113
    for gpu in gpus:
        assert gpu.memory_bytes > 7 * 10**9
        assert gpu.memory_bandwidth_gbps is not None
        assert gpu.source
        assert gpu.memory_source
        assert gpu.confidence in {"high", "medium", "low"}  # low: told of by posts alone, and so assumed
        assert gpu.memory_margin_bytes <= 0.04 * gpu.memory_bytes


REPORTED = {  # GiB that torch gives as a card's total, in out-of-memory messages of public threads
    "a100": (79.1, 79.25),
    "h100": (79.11, 79.19),
    "h200": (139.72, 139.81),
    "v100-32gb": (31.73, 31.74),
    "rtx-3090": (23.58, 23.58),
    "rtx-4090": (23.64, 23.64),  # 3DTopia/Phidias-Diffusion#8
    "rtx-5090": (31.34, 31.36),
    "l4": (22.04, 22.04),
    "l40": (44.4, 44.4),  # QwenLM/Qwen3-VL#2097
    "l40s": (44.42, 44.42),  # stepfun-ai/Step-Video-T2V#8
    "rtx-pro-6000": (94.97, 94.97),
    "a10g": (22.04, 22.2),  # h2oai/h2ogpt#48
    "b200": (178.35, 178.35),  # pytorch/ao#4002
    "gb10": (121.69, 121.69),  # MiaAI-Lab/GLM-5.3-Flash-EXL3-2x-DGX-Sparks#47
    "910b": (60.96, 61.27),  # vllm-project/vllm-ascend#1670, sgl-project/sglang#29838
    "mi300x": (191.98, 191.98),  # ROCm/legacy-rocm-build#4414
    "7900xtx": (23.98, 23.98),  # Tongyi-MAI/Z-Image#103
}


@pytest.mark.parametrize("name", REPORTED)
def test_memory_is_what_an_engine_is_told(name: str) -> None:
    low, high = REPORTED[name]
    gpu = find_gpu(name)
    assert low - 0.5 <= gpu.memory_bytes / 2**30 <= high + 0.5
    assert gpu.memory_bytes + gpu.memory_margin_bytes >= low * 2**30 - 2**28


SHOWN = {  # MiB of nvidia-smi, in public threads
    "rtx-4090": 24564, "rtx-a6000": 49140, "6000-ada": 49140, "4090-48gb": 49140, "3060": 12288, "t4": 15360,
    "a10": 23028, "a100-40gb": 40960, "h20": 97871, "4080": 16376, "5080": 16303, "5070-ti": 16303, "5060-ti": 16311,
    "4070-ti": 12282, "b300": 275040, "gb300": 284208, "gb200": 189471,
}  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
def test_memory_is_near_what_nvidia_smi_shows(name: str) -> None:
    assert find_gpu(name).memory_bytes / 2**30 == pytest.approx(SHOWN[name] / 1024, abs=0.5)


def test_the_part_of_the_driver_is_what_cards_with_both_figures_show() -> None:
    """The rule for cards of which only nvidia-smi was read: 0.45 GiB less, good to 0.35 GiB."""
    for name in ("h100", "h200", "b200", "l4", "l40s", "rtx-3090", "rtx-4090", "rtx-5090", "a5000", "pro-6000", "a100"):
        entry = find_gpu(name)
        assert entry.memory_margin_bytes == 0
    low, high = REPORTED["b200"][0] - 183359 / 1024, REPORTED["rtx-4090"][0] - 24564 / 1024
    assert -0.8 <= low <= high <= -0.1


def test_unified_memory_keeps_a_part_for_the_system() -> None:
    """llama.cpp#2011 and #3213: Metal recommends 21,845 MiB of 32 GiB, 73,728 MiB of 96 GiB."""
    small, large = find_gpu("m1-max-32gb"), find_gpu("Apple-M2-Max-96GB")
    assert small.free_bytes / 2**20 == pytest.approx(21845.34, abs=0.01)
    assert large.free_bytes / 2**20 == pytest.approx(73728, abs=0.01)
    spark = find_gpu("dgx-spark")
    assert 102 <= spark.free_bytes / 2**30 <= 0.92 * 121.69


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
        ("rtx6000ada", "RTX-6000-Ada-48GB"),
        ("a100-80g", "A100-SXM-80GB"),
        ("rtx 4090", "RTX-4090-24GB"),
        ("mi300x", "MI300X-192GB"),
        ("tpu-v5e", "TPU-v5e"),
        ("NVIDIA A10", "A10-24GB"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM-80GB"),
        ("NVIDIA GeForce RTX 4080 SUPER", "RTX-4080-SUPER-16GB"),
        ("RTX 4080", "RTX-4080-16GB"),
        ("4090 48GB", "RTX-4090-48GB"),
        ("H200", "H200-SXM-141GB"),
        ("5060 ti 16gb", "RTX-5060-Ti-16GB"),
        ("a100-80", "A100-SXM-80GB"),
        ("AMD Radeon RX 7900 XTX", "RX-7900-XTX-24GB"),
        ("M3 Ultra 512GB", "Apple-M3-Ultra-512GB"),
        ("Ascend 910B", "Ascend-910B-64GB"),
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


def test_memory_that_is_given_goes_before_the_catalogue_s() -> None:
    modified = with_memory(find_gpu("rtx-3090"), memory_bytes=48 << 30)
    assert modified is not None
    assert (modified.memory_bytes, modified.memory_bandwidth_gbps) == (48 << 30, 936.2)
    nameless = with_memory(None, memory_bytes=24 << 30, free_bytes=20 << 30)
    assert nameless is not None
    assert (nameless.name, nameless.free_bytes, nameless.bf16_tflops) == ("24 GiB card", 20 << 30, None)
    assert with_memory(None) is None


@pytest.mark.parametrize(
    ("name", "memory", "free", "message"),
    [
        (None, None, 1 << 30, "name it with --gpu, or give --gpu-memory"),
        ("l4", None, 40 << 30, "--free-memory 40 GiB is more than L4-24GB has"),
    ],
)
def test_free_memory_without_a_card_that_has_it(name: str | None, memory: int | None, free: int, message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        with_memory(find_gpu(name) if name else None, memory_bytes=memory, free_bytes=free)
