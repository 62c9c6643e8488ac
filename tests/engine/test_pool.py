"""Predicted == allocated, and what copy-on-write does to the tensors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kvtool.cache.manager import PageCopy
from kvtool.engine.batch import build_batch
from kvtool.engine.config import EngineConfig
from kvtool.engine.engine import Engine
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.pool import CACHE_DTYPES, KvPool, cache_dtype, layer_pages
from kvtool.engine.scheduler import Work
from kvtool.engine.sequence import SamplingParams, Sequence
from kvtool.sizing.formats import parse_cache_format
from kvtool.sizing.layers import layer_specs
from kvtool.sizing.specs import FullSpec
from kvtool.system.errors import DeviceError, KvtoolError
from tests.engine.conftest import SaveTiny
from tests.engine.running import engine_of, generate, largest_difference, load, prompt, resolved

CPU = torch.device("cpu")


def tensors_of(pool: KvPool) -> list[torch.Tensor]:
    return [tensor for layer in pool.layers for tensor in layer.tensors]


@pytest.mark.parametrize("kv_cache_dtype", CACHE_DTYPES)
@pytest.mark.parametrize(
    "name", ["llama-3-gqa", "llama-mqa-tied", "mistral-window", "qwen2-half-sliding", "deepseek-v3"]
)
@pytest.mark.parametrize("block_size", [1, 16, 48])
def test_the_tensors_hold_the_bytes_that_the_specs_predict(
    tiny: SaveTiny, name: str, kv_cache_dtype: str, block_size: int
) -> None:
    loaded = load(tiny(name).folder, kv_cache_dtype=kv_cache_dtype, block_size=block_size)
    num_pages = 7
    pool = KvPool(loaded.specs, num_pages, block_size, CPU)
    held = sum(tensor.untyped_storage().nbytes() for tensor in tensors_of(pool))
    assert held == pool.bytes == num_pages * sum(spec.page_bytes(block_size) for spec in loaded.specs)
    assert pool.page_bytes == loaded.page_bytes == held // num_pages
    # While a window has not gone past, what `kvtool size` allocates to a sequence is what it holds here.
    sized = layer_specs(loaded.model, parse_cache_format(kv_cache_dtype))
    tokens = 13
    pages = -(-tokens // block_size)
    assert sum(spec.allocated_bytes(tokens, block_size) for spec in sized) == pages * pool.page_bytes


@pytest.mark.parametrize(
    "kv_cache_dtype", ["int4", "q4_0/int8_per_token_head", "int4_per_token_head+hadamard", "bf16/q5_1"]
)
def test_packed_pages_hold_what_is_sized_and_generate_what_whole_ones_do(tiny: SaveTiny, kv_cache_dtype: str) -> None:
    """Heads of 32: 4 bits move logits of order 1; beside another a sequence says what it says alone."""
    reference = tiny("llama-wide-heads")
    loaded = load(reference.folder, kv_cache_dtype=kv_cache_dtype)
    engine = engine_of(loaded)
    sized = layer_specs(loaded.model, parse_cache_format(kv_cache_dtype))
    assert engine.pool.page_bytes == loaded.page_bytes == sum(spec.page_bytes(16) for spec in sized)
    together = generate(engine, [prompt(37), prompt(20)], max_tokens=5)
    alone = generate(engine_of(loaded), [prompt(20)], max_tokens=5)[0]
    assert together[1].output_ids == alone.output_ids
    assert 1e-4 < max(largest_difference(reference, sequence) for sequence in together) < 2.0


@pytest.mark.parametrize("name", ["kivi_int4", "nvfp4"])
def test_a_format_that_many_sequences_cannot_keep_is_refused_by_name(tiny: SaveTiny, name: str) -> None:
    with pytest.raises(KvtoolError, match=f"cannot run a '{name}' cache: use one of fp32"):
        load(tiny("llama-wide-heads").folder, kv_cache_dtype=name)


def test_a_gpu_keeps_packed_heads_whose_groups_are_alike() -> None:
    gpu = torch.device("meta")
    odd = FullSpec(kv_heads=2, k_head_dim=80, v_head_dim=80, cache_format=parse_cache_format("int4"))
    assert layer_pages(odd, 1, 16, CPU).k.shape == (1, 16, 2, 48)
    with pytest.raises(KvtoolError, match="heads of 80 has groups that differ"):
        layer_pages(odd, 1, 16, gpu)


def test_a_page_of_llama_holds_what_a_page_of_llama_holds(tiny: SaveTiny) -> None:
    """3 layers x (K + V) x 2 KV heads x 8 elements x 2 bytes x 16 tokens."""
    loaded = load(tiny("llama-3-gqa").folder, kv_cache_dtype="bf16")
    assert KvPool(loaded.specs, 1, 16, CPU).bytes == 3 * 2 * 2 * 8 * 2 * 16


@pytest.mark.parametrize(
    ("name", "kv_cache_dtype"),
    [
        ("llama-3-gqa", "fp32"),
        ("llama-3-gqa", "fp8"),
        ("llama-3-gqa", "int8_per_token_head"),
        ("deepseek-v3", "fp32"),
        ("deepseek-v3", "fp8"),
        ("deepseek-v3", "int8_per_token_head"),
    ],
)
def test_copying_pages_copies_every_layer_and_nothing_else(tiny: SaveTiny, name: str, kv_cache_dtype: str) -> None:
    loaded = load(tiny(name).folder, kv_cache_dtype=kv_cache_dtype)
    pool = KvPool(loaded.specs, 5, 16, CPU)
    for tensor in tensors_of(pool):
        tensor.view(torch.uint8).random_(0, 100, generator=torch.Generator().manual_seed(0))
    before = [tensor.view(torch.uint8).clone() for tensor in tensors_of(pool)]
    pool.copy_pages([PageCopy(source=1, target=3), PageCopy(source=4, target=0)])
    for old, tensor in zip(before, tensors_of(pool), strict=True):
        assert torch.equal(tensor.view(torch.uint8), old[[4, 1, 2, 1, 4]])


def compute(engine: Engine, sequence: Sequence) -> None:
    """One step of one sequence, outside the scheduler: what is pending, and the token that follows."""
    assert sequence.pages is not None
    assert engine.cache.reserve(sequence.pages, len(sequence.token_ids))
    work = [Work(sequence, sequence.num_pending)]
    logits = engine.loaded.transformer(build_batch(work, CPU), engine.pool.layers, engine.loaded.kernels)
    engine.cache.commit(sequence.pages, sequence.token_ids)
    sequence.num_computed = len(sequence.token_ids)
    sequence.logits.append(logits[0])
    sequence.token_ids.append(int(logits[0].argmax()))


def forked(engine: Engine, parent: Sequence) -> Sequence:
    assert parent.pages is not None
    pages = engine.cache.fork(parent.pages, parent.token_ids[: parent.num_computed])
    copies = engine.cache.take_copies()
    assert len(copies) == (parent.num_computed % 16 > 0)
    engine.pool.copy_pages(copies)
    return Sequence(
        id=1,
        token_ids=list(parent.token_ids),
        prompt_tokens=len(parent.token_ids),
        params=parent.params,
        arrival_s=0.0,
        num_computed=parent.num_computed,
        pages=pages,
    )


@pytest.mark.parametrize("name", ["llama-3-gqa", "mistral-window", "deepseek-v3"])
@pytest.mark.parametrize("prompt_tokens", [16, 21])
def test_forked_sequences_part_on_the_page_they_share(tiny: SaveTiny, name: str, prompt_tokens: int) -> None:
    reference = tiny(name)
    engine = engine_of(load(reference.folder))
    parent = Sequence(
        id=0,
        token_ids=prompt(prompt_tokens),
        prompt_tokens=prompt_tokens,
        params=SamplingParams(max_tokens=1),
        arrival_s=0.0,
        pages=engine.cache.open(prompt(prompt_tokens)),
    )
    compute(engine, parent)
    child = forked(engine, parent)
    child.token_ids[-1] = (parent.token_ids[-1] + 1) % 100
    assert child.pages is not None
    assert parent.pages is not None
    for _ in range(20):
        for sequence in (parent, child):
            compute(engine, sequence)
            engine.cache.check()
    whole = prompt_tokens // 16
    assert child.pages.table.pages[:whole] == parent.pages.table.pages[:whole]
    assert not set(child.pages.table.pages[whole:]) & set(parent.pages.table.pages[whole:])
    assert max(largest_difference(reference, sequence) for sequence in (parent, child)) < 1e-4


def test_a_pool_larger_than_memory_is_refused_before_it_is_allocated(tiny: SaveTiny) -> None:
    loaded = load(tiny("llama-3-gqa").folder)
    with pytest.raises(
        DeviceError, match=r"pool of 1,000,000,000 pages needs [\d.,]+ .iB, but cpu has .* ask for fewer"
    ):
        Engine(loaded, num_pages=10**9)


@pytest.mark.parametrize("num_pages", [0, -3])
def test_a_pool_without_pages_is_refused(tiny: SaveTiny, num_pages: int) -> None:
    with pytest.raises(KvtoolError, match=f"a pool of {num_pages} pages"):
        Engine(load(tiny("llama-3-gqa").folder), num_pages=num_pages)


@pytest.mark.parametrize("kv_cache_dtype", ["int8", "fp8+calibrated", "int8+hadamard"])
def test_scales_are_measured_before_anything_runs(tiny: SaveTiny, kv_cache_dtype: str) -> None:
    """Of random weights on random ids: what comes then has much the same magnitudes, whoever runs beside."""
    reference = tiny("llama-wide-heads")
    model, config = resolved(str(reference.folder)), EngineConfig(dtype="fp32", device="cpu")
    whole = LoadedModel(model, config, max_positions=64)
    loaded = LoadedModel(model, replace(config, kv_cache_dtype=kv_cache_dtype), max_positions=64)
    assert loaded.amax is not None
    assert whole.amax is None
    assert all(k is not None and v is not None and 0 < v < 20 for k, v in loaded.amax)
    assert f"scales of the {kv_cache_dtype} cache reach what random ids showed first" in loaded.assumptions()
    together = generate(engine_of(loaded), [prompt(37), prompt(20)], max_tokens=3)
    alone = generate(engine_of(loaded), [prompt(20)], max_tokens=3)[0]
    exact = generate(engine_of(whole), [prompt(37), prompt(20)], max_tokens=1)
    assert together[1].output_ids == alone.output_ids
    moved = max(float((a.logits[0] - b.logits[0]).abs().max()) for a, b in zip(together, exact, strict=True))
    assert 1e-4 < moved < 0.6
    pool = engine_of(loaded).pool
    assert pool.page_bytes == loaded.page_bytes


def test_scales_that_cannot_be_measured_are_refused(tiny: SaveTiny) -> None:
    with pytest.raises(KvtoolError, match="a int8 cache has scales of K and V heads: the latents of"):
        load(tiny("deepseek-v3").folder, kv_cache_dtype="int8")
    with pytest.raises(KvtoolError, match="a int8 cache measures its scales on a text"):
        load(tiny("llama-3-gqa").folder, kv_cache_dtype="int8")


def test_a_format_without_a_dtype_of_torch_is_refused_by_name() -> None:
    with pytest.raises(KvtoolError, match="cannot run a 'int8' cache: use one of fp32, bf16, fp16, fp8, fp8_e5m2"):
        cache_dtype("int8")


@pytest.mark.parametrize("kv_cache_dtype", ["fp8_per_token_head", "int8_per_token_head"])
@pytest.mark.parametrize("name", ["llama-3-gqa", "qwen3", "mistral-window"])
def test_a_scale_beside_each_vector_keeps_the_logits_close(tiny: SaveTiny, name: str, kv_cache_dtype: str) -> None:
    """int8 keeps 7 bits of each element, fp8 4: logits of order 1 move a little."""
    reference = tiny(name)
    sequence = generate(engine_of(load(reference.folder, kv_cache_dtype=kv_cache_dtype)), [prompt(37)], max_tokens=5)[0]
    moved = largest_difference(reference, sequence)
    assert 1e-4 < moved < (0.15 if kv_cache_dtype.startswith("int8") else 0.6)


def test_unused_slots_may_hold_nan(tiny: SaveTiny) -> None:
    """A recycled page holds what another sequence left there; none of it may be seen."""
    for name in ("llama-3-gqa", "mistral-window", "deepseek-v3"):
        reference = tiny(name)
        engine = engine_of(load(reference.folder))
        for tensor in tensors_of(engine.pool):
            tensor.fill_(float("nan"))
        sequences = generate(engine, [prompt(5), prompt(37)], max_tokens=5)
        assert max(largest_difference(reference, sequence) for sequence in sequences) < 1e-4
