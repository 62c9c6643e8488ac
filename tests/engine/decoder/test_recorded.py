"""Decode steps that are taken down give the tokens of those that run as they come, whatever grows or ends meanwhile."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kvtool.catalog.resolve import resolve_model
from kvtool.engine.config import EngineConfig
from kvtool.engine.engine import Engine
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.sequence import SamplingParams
from tests.engine.running import prompt

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="the compiled kernels need gcc")
_LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "torch_dtype": "bfloat16",
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "vocab_size": 160,
    "max_position_embeddings": 512,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "qwen3": {**_LLAMA, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
    "mistral": {**_LLAMA, "model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 24},
}
LENGTHS = ((3, 40), (21, 90), (60, 7), (5, 70), (130, 20))  # prompt and output tokens


def load(folder: Path, name: str, **config: Any) -> LoadedModel:
    (folder / "config.json").write_text(json.dumps(CONFIGS[name]))
    settings = {"dtype": "bf16", "device": "cpu", "block_size": 4, "prefill_first": True} | config
    return LoadedModel(resolve_model(str(folder)), EngineConfig(**settings), max_positions=256)


def run(engine: Engine) -> list[tuple[list[int], Any]]:
    """The tokens of each request, and all its logits."""
    engine.keep_logits = True
    requests = [
        engine.add([token % 160 for token in prompt(before)], SamplingParams(max_tokens=after, ignore_eos=True))
        for before, after in LENGTHS
    ]
    list(engine.run_until_idle())
    return [(one.output_ids, [row.tolist() for row in one.logits]) for one in requests]


@needs_gcc
@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_logits_whatever_grows_or_ends(tmp_path: Path, name: str) -> None:
    loaded = load(tmp_path, name)
    plain, recorded, prepared = (Engine(loaded, num_pages=256) for _ in range(3))
    plain.forward.most_rows = 0
    expected = run(plain)
    assert run(recorded) == expected
    assert len(recorded.forward) > len(LENGTHS)  # numbers of sequences, and lengths
    assert len(plain.forward) == 0
    prepared.prepare([len(LENGTHS)])
    assert len(prepared.forward) == 1
    assert run(prepared) == expected


@needs_gcc
def test_what_kernels_cannot_take_down_is_tried_once(tmp_path: Path) -> None:
    engine = Engine(load(tmp_path, "llama", dtype="fp32"), num_pages=256)
    engine.prepare([1])
    assert engine.forward.most_rows == 0
    run(engine)
    assert len(engine.forward) == 0


@needs_gcc
def test_too_many_rows_for_the_kernels_stop_no_fewer(tmp_path: Path) -> None:
    engine = Engine(load(tmp_path, "llama"), num_pages=256)
    for layer in engine.loaded.transformer.layers:
        layer.mlp.down.packed.most_rows = 3
    run(engine)  # five sequences at first
    assert engine.forward.most_rows == 3
    assert len(engine.forward) > 0


def test_without_a_compiler_nothing_is_taken_down(tmp_path: Path, without_compiler: None) -> None:
    engine = Engine(load(tmp_path, "llama"), num_pages=256)
    run(engine)
    assert len(engine.forward) == 0
