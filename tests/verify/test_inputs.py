"""The model and the flags of a log, as kvtool names them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvtool.system.errors import KvtoolError
from kvtool.verify.facts import LogFacts
from kvtool.verify.inputs import Started, started
from tests.verify.helpers import from_text


def start(facts: LogFacts, model: str | None = None, **given: str) -> Started:
    return started(facts, model=model, gpu=None, given=given, models_path=None)


@pytest.mark.parametrize(
    "name",
    [
        "meta-llama/Llama-3.1-8B",
        "/models/meta-llama/Llama-3.1-8B/",
        "/root/.cache/huggingface/hub/models--meta-llama--Llama-3.1-8B/snapshots/0123",
        "/data/llama-3.1-8b",
    ],
)
def test_a_model_is_found_under_its_name_or_its_path(name: str) -> None:
    facts = from_text(f"non-default args: {{'model': '{name}', 'tensor_parallel_size': 2}}")
    assert start(facts).model.id == "meta-llama/Llama-3.1-8B"


def test_a_model_that_is_not_named_or_not_known() -> None:
    with pytest.raises(KvtoolError, match="does not say which model"):
        start(from_text("Available KV cache memory: 1.00 GiB"))
    with pytest.raises(KvtoolError, match="/srv/x is not known: name MODEL"):
        start(from_text("non-default args: {'model': '/srv/x', 'max_model_len': 1}"))


def test_flags_become_options_and_the_user_overrules_them() -> None:
    facts = from_text(
        "non-default args: {'model': 'mistralai/Mixtral-8x7B-v0.1', 'tensor_parallel_size': 4, "
        "'data_parallel_size': 2, 'enable_expert_parallel': True, 'kv_cache_dtype': 'fp8_e4m3', 'max_model_len': None, "
        "'async_scheduling': False, 'disable_hybrid_kv_cache_manager': True, 'gpu_memory_utilization': 0.85}\n"
        "Chunked prefill is enabled with max_num_batched_tokens=2048.\n"
        "Maximum concurrency for 8,192 tokens per request: 4.00x"
    )
    options = start(facts).options
    assert (options.parallel.tp, options.parallel.dp, options.parallel.ep) == (4, 2, 8)
    assert (options.kv_cache_dtype, options.max_model_len, options.max_num_batched_tokens) == ("fp8", 8192, 2048)
    assert (options.async_scheduling, options.hybrid_kv_cache_manager) == (False, False)
    assert options.gpu_memory_utilization == 0.85
    changed = start(facts, tp="2", kv_cache_dtype="bfloat16")
    assert (changed.options.parallel.tp, changed.options.kv_cache_dtype) == (2, "bf16")
    assert changed.inputs["tp"] == 2


@pytest.mark.parametrize(
    ("flag", "value"), [("max_model_len", "long"), ("tensor_parallel_size", "two"), ("gpu_memory_utilization", "x")]
)
def test_a_value_that_is_none(flag: str, value: str) -> None:
    facts = from_text(f"non-default args: {{'model': 'meta-llama/Llama-3.1-8B', '{flag}': {value}}}")
    with pytest.raises(KvtoolError, match=f"'{value}' is not a"):
        start(facts)


def test_weights_that_the_engine_quantised() -> None:
    facts = from_text("non-default args: {'model': 'meta-llama/Llama-3.1-8B', 'quantization': 'fp8'}")
    assert start(facts).weight_dtype == "fp8"


def test_a_model_nobody_knows_is_read_as_another(tmp_path: Path) -> None:
    shape = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
    (tmp_path / "odd.json").write_text(json.dumps({"model_type": "oddball", "vocab_size": 1000, **shape}))
    asked, facts = str(tmp_path / "odd.json"), from_text("non-default args: {'max_model_len': 64}")
    found = started(facts, model=asked, gpu=None, given={}, models_path=None, family="llama").model
    assert (found.architecture, found.num_layers) == ("llama", 2)
    assert "because --as says so" in found.assumed[0]
    with pytest.raises(KvtoolError, match="--as FAMILY of every command but advise"):
        started(facts, model=asked, gpu=None, given={}, models_path=None)
