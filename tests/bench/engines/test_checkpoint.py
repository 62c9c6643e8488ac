"""Our random weights as a folder: what transformers computes from it is what our engine computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kvtool.bench.engines import checkpoint
from kvtool.bench.engines.checkpoint import Checkpoint, weights_folder, write_random
from kvtool.bench.peers import PeerError
from kvtool.catalog.decoder import Decoder, RopeScaling
from kvtool.catalog.model import FullAttention, Layer, Moe, SlidingAttention
from kvtool.catalog.resolve import resolve_model
from kvtool.engine.engine import Engine
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.sequence import SamplingParams
from tests.bench.tiny_model import TINY, config

LLAMA3 = RopeScaling(
    kind="llama3", factor=8.0, original_max_position_embeddings=64, low_freq_factor=1.0, high_freq_factor=4.0
)
WINDOW = SlidingAttention(kv_heads=2, k_head_dim=16, v_head_dim=16, window=9)
WIDE = FullAttention(kv_heads=2, k_head_dim=24, v_head_dim=24)
MODELS = {
    "llama": TINY,
    "llama-untied-scaled": replace(
        TINY, tie_word_embeddings=False, decoder=Decoder(family="llama", exact=True, rope_scaling=LLAMA3)
    ),
    "llama-biased": replace(
        TINY, decoder=Decoder(family="llama", exact=True, qkv_bias=True, output_bias=True, mlp_bias=True)
    ),
    "mistral": replace(TINY, layers=(Layer(cache=WINDOW),) * 2, decoder=Decoder(family="mistral", exact=True)),
    "qwen2": replace(TINY, decoder=Decoder(family="qwen2", exact=True, qkv_bias=True)),
    "qwen2-half-sliding": replace(
        TINY,
        layers=(TINY.layers[0], Layer(cache=WINDOW)),
        decoder=Decoder(family="qwen2", exact=True, qkv_bias=True),
    ),
    "qwen3": replace(
        TINY,
        layers=(Layer(cache=WIDE),) * 2,
        decoder=Decoder(family="qwen3", exact=True, qk_norm=True, rope_theta=1e6),
    ),
    "smollm3": replace(TINY, decoder=Decoder(family="smollm3", exact=True, rope_pattern=(True, False))),
    "olmo2": replace(
        TINY, decoder=Decoder(family="olmo2", exact=True, norms="after", qk_norm=True, qk_norm_spans_heads=True)
    ),
}


def loaded_as(model, **given: object) -> LoadedModel:
    return LoadedModel(model, config(**given), max_positions=64)


def opened(folder: Path) -> Checkpoint:
    return Checkpoint(folder, torch.device("cpu"), "fp32", max_tokens=64, max_batch=2, token_bytes=512)


@pytest.mark.parametrize("name", MODELS)
def test_transformers_computes_our_logits_from_the_folder(name: str) -> None:
    loaded = loaded_as(MODELS[name])
    engine = Engine(loaded, num_pages=8)
    engine.keep_logits = True
    sequence = engine.add(list(range(5, 26)), SamplingParams(max_tokens=4))
    for _ in engine.run_until_idle():
        pass
    with weights_folder(loaded) as folder, torch.inference_mode():
        said = opened(folder).in_transformers(torch.tensor([sequence.token_ids[:-1]]), use_cache=False)
    assert not folder.exists()
    torch.testing.assert_close(torch.stack(sequence.logits), said.logits[0, 20:], atol=2e-4, rtol=1e-4)


def test_our_own_reader_finds_the_same_model_in_the_folder(tmp_path: Path) -> None:
    loaded = loaded_as(MODELS["qwen3"])
    write_random(loaded, tmp_path)
    read = resolve_model(str(tmp_path))
    assert read.layers == loaded.model.layers
    assert read.decoder == loaded.model.decoder


def test_large_weights_are_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 64 * 1024)
    loaded = loaded_as(TINY)
    write_random(loaded, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    written = opened(tmp_path).in_transformers.get_parameter("model.layers.1.mlp.down_proj.weight")
    assert torch.equal(written, loaded.weights.tensor("model.layers.1.mlp.down_proj.weight", 64, 128))


def test_a_folder_of_the_user_is_taken_as_it_is(tmp_path: Path) -> None:
    write_random(loaded_as(TINY), tmp_path)
    read = resolve_model(str(tmp_path))
    with weights_folder(loaded_as(read, weights=str(tmp_path))) as folder:
        assert folder == tmp_path
    assert (tmp_path / "config.json").is_file()
    with (
        pytest.raises(PeerError, match="--num-layers cuts random weights only"),
        weights_folder(loaded_as(read, weights=str(tmp_path), num_layers=1)),
    ):
        pass


@pytest.mark.parametrize(
    "other",
    [
        {"decoder": Decoder(family="gemma2", exact=True)},
        {"layers": (TINY.layers[0], Layer(cache=WIDE))},
        {"moe": Moe(num_experts=4, experts_per_token=2, intermediate_size=32)},
    ],
)
def test_a_model_without_a_config_is_refused_by_name(other: dict[str, object], tmp_path: Path) -> None:
    loaded = loaded_as(TINY)
    loaded.model = replace(TINY, **other)
    with pytest.raises(PeerError, match="random weights of tiny-llama have no transformers config"):
        write_random(loaded, tmp_path)
