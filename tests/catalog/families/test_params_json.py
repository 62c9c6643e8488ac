"""Mistral's own params.json, and configs read as an architecture that the user names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvtool.catalog.hf_config import model_from_config, read_config
from kvtool.catalog.model import FullAttention, LatentAttention, Moe
from kvtool.catalog.resolve import resolve_model
from kvtool.catalog.safetensors_file import indexed_bytes
from kvtool.sizing.weights import weigh
from kvtool.system.errors import KvtoolError
from tests.catalog.data import DATA, LLAMA

MISTRAL_7B = {
    "dim": 4096, "n_layers": 32, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8,
    "norm_eps": 1e-05, "vocab_size": 32768, "rope_theta": 1000000.0,
}  # fmt: skip
FOREIGN = {**LLAMA, "model_type": "foo", "memory_slots": 3}


def test_mistral_small_4_keeps_a_latent() -> None:
    """(256 + 64) x 36 layers x 2 B = 23,040 B a token; attention is left in bf16, all else is NVFP4."""
    model = read_config(DATA / "params" / "mistral-small-4.params.json")
    cache = model.layers[0].cache
    assert isinstance(cache, LatentAttention)
    assert 2 * len(model.layers) * (cache.kv_lora_rank + cache.qk_rope_head_dim) == 23_040
    expected = Moe(num_experts=128, experts_per_token=4, intermediate_size=2048, shared_intermediate_size=2048)
    assert (model.architecture, model.moe, model.max_position_embeddings) == ("mistral4", expected, 1_048_576)
    assert model.quantisation is not None
    assert (model.quantisation.bits_per_weight, model.quantisation.whole) == (4.5, {"mixers"})


def test_dense_and_mixtral() -> None:
    dense = model_from_config(MISTRAL_7B, id="x", source="params.json")
    assert set(dense.layers) == {dense.layers[0]}
    assert dense.layers[0].cache == FullAttention(kv_heads=8, k_head_dim=128, v_head_dim=128)
    assert weigh(dense).stored_bytes == 2 * 7_248_023_552  # Mistral-7B-v0.3
    experts = {**MISTRAL_7B, "moe": {"num_experts": 8, "num_experts_per_tok": 2}}
    sparse = model_from_config(experts, id="x", source="params.json")
    assert (sparse.architecture, sparse.moe) == (
        "mixtral",
        Moe(num_experts=8, experts_per_token=2, intermediate_size=14336),
    )


def test_what_it_says_beyond_is_not_dropped() -> None:
    with pytest.raises(KvtoolError, match="field 'sliding_thing' is not known"):
        model_from_config({**MISTRAL_7B, "sliding_thing": 3}, id="x", source="params.json")


def _file(path: Path, values: dict[str, Any]) -> str:
    path.write_text(json.dumps(values))
    return str(path)


def test_as_reads_a_shape_that_nobody_knows_and_says_so(tmp_path: Path) -> None:
    name = _file(tmp_path / "foo.json", FOREIGN)
    with pytest.raises(KvtoolError, match=r"'foo' is not known.*--as llama"):
        resolve_model(name)
    model = resolve_model(name, family="llama")
    assert model.architecture == "llama"
    assert model.decoder is not None
    assert model.decoder.family == "llama"  # so that it runs too
    assert model.layers[0].cache == FullAttention(kv_heads=2, k_head_dim=16, v_head_dim=16)
    assert model.assumed == (
        "assumed: foo is read as llama, because --as says so, where the config says 'foo'; not read: memory_slots",
    )


@pytest.mark.parametrize(
    ("family", "message"),
    [("lama", "--as 'lama' is not an architecture: did you mean llama"), ("gemma4_text", "'head_dim' is missing")],
)
def test_as_needs_an_architecture_that_fits(tmp_path: Path, family: str, message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        resolve_model(_file(tmp_path / "foo.json", FOREIGN), family=family)


def test_as_is_about_configs() -> None:
    with pytest.raises(KvtoolError, match=r"reads a config\.json"):
        resolve_model("llama-3.1-8b", family="llama")


def test_an_index_alone_says_how_many_bytes(tmp_path: Path) -> None:
    quantised = {"quant_method": "awq", "bits": 4, "group_size": 128}
    _file(tmp_path / "config.json", {**LLAMA, "quantization_config": quantised})
    _file(tmp_path / "model.safetensors.index.json", {"metadata": {"total_size": 123_456}, "weight_map": {}})
    weights = weigh(resolve_model(str(tmp_path)))
    assert weights.stored_bytes == 123_456
    assert weights.source == "exact: the index or the headers of its checkpoint"


def test_an_index_that_is_none(tmp_path: Path) -> None:
    assert indexed_bytes(Path(_file(tmp_path / "a.json", {"weight_map": {}}))) is None
    with pytest.raises(KvtoolError, match="total_size '-1' is not a number of bytes"):
        indexed_bytes(Path(_file(tmp_path / "b.json", {"metadata": {"total_size": -1}})))
