from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from kvtool.catalog.model import FullAttention
from kvtool.catalog.resolve import inline_model, resolve_model
from kvtool.system.errors import KvtoolError
from tests.catalog.data import CONFIGS, LLAMA


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network and an empty Hub cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def folder(path: Path, *, weights: bool, **changes: object) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    if weights:
        save_file({"a": np.zeros((3, 5), np.float32)}, path / "model.safetensors")
    return path


def test_a_catalogue_name() -> None:
    assert resolve_model("Llama-3.1-8B").id == "meta-llama/Llama-3.1-8B"


def test_a_catalogue_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(
        "{schema: kvtool.models/1, models: [{id: mine, layers: full, num_heads: 1, hidden_size: 8, source: me, "
        "confidence: high, full: {kv_heads: 1, k_head_dim: 8, v_head_dim: 8}}]}"
    )
    assert resolve_model("mine", models_path=path).num_layers == 1
    with pytest.raises(KvtoolError, match="unknown model 'gpt2'"):
        resolve_model("gpt2", models_path=path)


def test_a_folder_and_a_file(tmp_path: Path) -> None:
    path = folder(tmp_path / "mine", weights=False)
    assert resolve_model(str(path)).id == "mine"
    assert resolve_model(str(path / "config.json")).layers == resolve_model(str(path)).layers
    assert resolve_model(str(CONFIGS[0])).num_layers > 0


def test_a_folder_with_weights_counts_its_parameters(tmp_path: Path) -> None:
    assert resolve_model(str(folder(tmp_path / "a", weights=True))).params_total == 15
    quantised = folder(tmp_path / "b", weights=True, quantization_config={"quant_method": "fp8"})
    assert resolve_model(str(quantised)).params_total is None


def test_a_folder_with_truncated_weights_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path / "a", weights=True)
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(KvtoolError, match="is truncated"):
        resolve_model(str(path))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lama-3.1-8b", r"unknown model 'lama-3.1-8b': did you mean llama-3.1-8b"),
        ("zzzzzzzz", r"unknown model 'zzzzzzzz': `kvtool models` lists them"),
        ("", "unknown model ''"),
        ("x" * 9000, "unknown model 'xxxx"),
        ("a\0b", "unknown model"),
        ("nowhere/config.json", "cannot read nowhere/config.json"),
        ("nothing.gguf", r"cannot read nothing\.gguf"),
        ("/nowhere/at/all", "is neither a folder"),
        ("./nowhere", "is neither a folder"),
        ("nobody/nothing", "is not in the catalogue, and the Hub cannot be reached"),
        ("meta-llama/Llama-3.1-8C", "give its config.json: did you mean meta-llama/llama-3.1-8b"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(KvtoolError, match=message) as refused:
        resolve_model(name)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(KvtoolError, match=r"cannot read .*config\.json"):
        resolve_model(str(tmp_path))


def test_offline_is_said_without_a_retry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A port that nobody listens on answers at once, and is asked once: no waiting between tries."""
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waited {seconds} s before another try"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{filename}"
    )
    with pytest.raises(KvtoolError, match="the Hub cannot be reached"):
        resolve_model("nobody/nothing")


def test_inline_shape() -> None:
    model = inline_model(layers=96, heads=96, kv_heads=8, head_dim=128)
    assert model.layers == (model.layers[0],) * 96
    assert model.layers[0].cache == FullAttention(kv_heads=8, k_head_dim=128, v_head_dim=128)
    assert (model.attention, model.hidden_size, model.decoder, model.params_total) == ("gqa", 12288, None, None)
    assert inline_model(layers=1, heads=2, kv_heads=2, head_dim=4, hidden_size=64).hidden_size == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "--layers 0 must be from 1 to 4096"),
        ({"heads": -1}, "--heads -1 must be"),
        ({"kv_heads": 3}, "--heads 8 do not divide among --kv-heads 3"),
        ({"kv_heads": 16}, "--heads 8 do not divide among --kv-heads 16"),
        ({"head_dim": 10**9}, "--head-dim 1000000000 must be"),
    ],
)
def test_absurd_inline_shapes_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        inline_model(**{"layers": 2, "heads": 8, "kv_heads": 2, "head_dim": 16, **changes})
