"""What the engine refuses, in one line each, and the small things a run is resolved to."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch

from kvtool.catalog.resolve import inline_model, resolve_model
from kvtool.engine.config import EngineConfig, resolve_dtype
from kvtool.engine.engine import Engine
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.sequence import SamplingParams
from kvtool.machine.device import resolve_device
from kvtool.system.errors import DeviceError, KvtoolError
from tests.engine.conftest import SaveTiny
from tests.engine.running import engine_of, generate, load, prompt
from tests.engine.tiny import MAX_POSITIONS, VOCAB_SIZE

GREEDY = SamplingParams(max_tokens=4)


@pytest.fixture
def engine(tiny: SaveTiny) -> Engine:
    return engine_of(load(tiny("llama-3-gqa").folder), num_pages=8)


@pytest.mark.parametrize(
    ("prompt_ids", "message"),
    [
        ([], "the prompt is empty: at least one token is needed"),
        ([1, -1], "token id -1 is outside the vocabulary of 131"),
        ([1, VOCAB_SIZE], "token id 131 is outside the vocabulary of 131"),
        ([10**30], f"token id {10**30} is outside"),
        ([1] * MAX_POSITIONS, "256 prompt tokens and 4 output tokens exceed the 256 positions of this run"),
        ([1] * 140, "a request of 144 tokens needs 9 pages of 16, but the pool has 8"),
    ],
)
def test_prompts_that_cannot_run_are_refused(engine: Engine, prompt_ids: list[int], message: str) -> None:
    with pytest.raises(KvtoolError, match=message) as error:
        engine.add(prompt_ids, GREEDY)
    assert "\n" not in str(error.value)
    assert engine.scheduler.is_idle


def test_the_longest_request_that_fits_runs_to_its_end(engine: Engine) -> None:
    sequence = generate(engine, [prompt(125)], max_tokens=4)[0]
    assert (len(sequence.output_ids), sequence.peak_pages) == (4, 8)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"block_size": 0}, "block-size 0 must be at least 1"),
        ({"max_num_seqs": -1}, "max-num-seqs -1 must be at least 1"),
        ({"max_num_batched_tokens": 0}, "max-num-batched-tokens 0 must be at least 1"),
        ({"dtype": "fp8"}, "dtype 'fp8' is not one the engine runs: auto, fp32, bf16, fp16"),
        ({"backend": "cuda"}, "backend 'cuda' is not one of auto, triton, torch"),
        ({"eviction": "lur"}, "eviction policy 'lur' is not one of lru, lfu, fifo"),
        ({"index": "hash"}, "index 'hash' is not one of radix, hashed"),
        ({"index": "hashed", "eviction": "lfu"}, "hashed index evicts in the order of its queue, lru: for lfu take"),
        ({"index": "hashed", "partial_hits": True}, "hashed index finds whole pages alone: for partial hits take"),
        ({"admission": "never"}, "admission 'never' is not one of always, second-hit"),
        ({"preemption": "none"}, "preemption policy 'none' is not one of youngest"),
    ],
)
def test_settings_that_mean_nothing_are_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        EngineConfig(**config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_layers": 0}, "--num-layers 0 must be from 1 to the 3 layers of"),
        ({"num_layers": 4}, "--num-layers 4 must be from 1 to the 3 layers of"),
        ({"backend": "triton"}, "backend 'triton' needs a CUDA device: use 'torch' on a CPU"),
        ({"kv_cache_dtype": "fp7"}, "unknown KV cache dtype 'fp7'"),
        ({"weights": "nowhere"}, "--weights 'nowhere' is neither 'random', a folder with safetensors"),
    ],
)
def test_runs_that_the_model_or_the_device_cannot_do_are_refused(
    tiny: SaveTiny, config: dict[str, object], message: str
) -> None:
    model = resolve_model(str(tiny("llama-3-gqa").folder))
    with pytest.raises(KvtoolError, match=message):
        LoadedModel(model, EngineConfig(**{"device": "cpu", **config}), max_positions=MAX_POSITIONS)


@pytest.mark.parametrize("name", ["gpu", "cpu:0", "cuda:x", "cuda:", "mps", ""])
def test_devices_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(KvtoolError, match="is not one of auto, cpu, cuda, cuda:N"):
        resolve_device(name)


def test_a_gpu_that_is_not_here_is_the_devices_fault() -> None:
    absent = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(DeviceError, match=rf"device '{absent}' is not here: torch sees \d+ CUDA devices") as error:
        resolve_device(absent)
    assert error.value.exit_code == 3


def changed(folder: Path, target: Path, **fields: object) -> str:
    """A config.json with some fields set, or left out where they are None."""
    config = json.loads((folder / "config.json").read_text()) | fields
    target.mkdir()
    (target / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return str(target)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("llama-3-gqa", {"vocab_size": None}, r"the engine does not run m \(architecture 'llama'\)"),
        ("llama-3-gqa", {"hidden_act": "xielu"}, "activation 'xielu' is not one the engine runs: silu, gelu"),
        ("llama-3-gqa", {"model_type": "granite", "architectures": None}, r"does not run m \(architecture 'granite'\)"),
        ("llama-3-gqa", {"num_key_value_heads": 3}, "8 attention heads .* 3"),
        ("llama-yarn", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "'yarn' lacks 'original_max"),
        ("llama-2-mha", {"rope_parameters": {"rope_type": "longrope", "factor": 4.0}}, "does not run m"),
        ("qwen3-moe", {"num_experts_per_tok": 7}, "num_experts_per_tok"),
        ("deepseek-v3", {"kv_lora_rank": None}, "kv_lora_rank"),
    ],
)
def test_configs_that_contradict_themselves_are_refused(
    tiny: SaveTiny, tmp_path: Path, name: str, fields: dict[str, object], message: str
) -> None:
    folder = changed(tiny(name).folder, tmp_path / "m", **fields)
    with pytest.raises(KvtoolError, match=message) as error:
        LoadedModel(resolve_model(folder), EngineConfig(device="cpu"), max_positions=MAX_POSITIONS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama-3-gqa", {"hidden_size": 32, "num_attention_heads": 4}),
        ("llama-3-gqa", {"head_dim": 16}),
        ("llama-3-gqa", {"num_hidden_layers": 4}),
        ("llama-3-gqa", {"vocab_size": 999}),
        ("llama-3-gqa", {"attention_bias": True}),
        ("llama-3-gqa", {"mlp_bias": True}),
        ("llama-mqa-tied", {"tie_word_embeddings": False}),
        ("qwen3-moe", {"num_local_experts": 8}),
        ("deepseek-v3", {"q_lora_rank": None}),
        ("deepseek-v3", {"n_shared_experts": 1}),
    ],
)
def test_a_config_that_does_not_fit_its_weights_is_refused(
    tiny: SaveTiny, tmp_path: Path, name: str, fields: dict[str, object]
) -> None:
    reference = tiny(name)
    model = resolve_model(changed(reference.folder, tmp_path / "m", **fields))
    config = EngineConfig(weights=str(reference.folder), device="cpu")
    with pytest.raises(KvtoolError, match=r"no tensor '|has shape \[") as error:
        LoadedModel(model, config, max_positions=MAX_POSITIONS)
    assert "\n" not in str(error.value)


def test_a_model_without_a_decoder_is_refused_before_anything_is_loaded() -> None:
    shape = inline_model(layers=2, heads=4, kv_heads=2, head_dim=8, vocab_size=100, intermediate_size=64)
    with pytest.raises(KvtoolError, match=r"the engine does not run inline-2x4x2x8 .* `kvtool size` can size it"):
        LoadedModel(shape, EngineConfig(), max_positions=16)


def test_weights_larger_than_memory_are_refused_before_they_are_drawn() -> None:
    with pytest.raises(
        DeviceError,
        match=r"takes [\d.,]+ .iB to run here, but cpu has .* (as --num-layers \d|even one layer)",
    ):
        LoadedModel(resolve_model("deepseek-v3"), EngineConfig(device="cpu"), max_positions=16)


def test_positions_beyond_memory_are_the_devices_fault(tiny: SaveTiny) -> None:
    model = resolve_model(str(tiny("llama-2-mha").folder))
    with pytest.raises(DeviceError, match=r"a pool of [\d,]+ pages needs .* but cpu has"):
        LoadedModel(model, EngineConfig(device="cpu"), max_positions=10**14)


@pytest.mark.parametrize(
    ("own", "expected"),
    [("float32", "fp32"), ("bfloat16", "bf16"), ("float16", "bf16"), ("bf16", "bf16"), (None, "bf16"), ("fp8", "bf16")],
)
def test_auto_is_the_models_own_dtype_where_a_cpu_runs_it_well(tiny: SaveTiny, own: str | None, expected: str) -> None:
    model = replace(resolve_model(str(tiny("llama-2-mha").folder)), dtype=own)
    assert resolve_dtype("auto", model, torch.device("cpu")) == expected
    assert resolve_dtype("fp16", model, torch.device("cpu")) == "fp16"


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_generation_stops_at_an_end_of_text_token_unless_it_is_ignored(
    tiny: SaveTiny, tmp_path: Path, ignore_eos: bool
) -> None:
    folder = tiny("llama-3-gqa").folder
    free_running = generate(engine_of(load(folder)), [prompt(10)], max_tokens=8)[0].output_ids
    stop = free_running[3]
    model = resolve_model(changed(folder, tmp_path / "m", eos_token_id=[VOCAB_SIZE - 1, stop]))
    loaded = LoadedModel(model, EngineConfig(weights=str(folder), dtype="fp32", device="cpu"), max_positions=64)
    engine = Engine(loaded, num_pages=8)
    sequence = engine.add(prompt(10), SamplingParams(max_tokens=8, ignore_eos=ignore_eos))
    list(engine.run_until_idle())
    assert sequence.output_ids == (free_running if ignore_eos else free_running[: free_running.index(stop) + 1])


def ticking() -> Callable[[], float]:
    ticks = count()
    return lambda: float(next(ticks))


def test_times_are_taken_from_the_engines_clock(tiny: SaveTiny) -> None:
    engine = Engine(load(tiny("llama-3-gqa").folder), num_pages=8, clock=ticking())
    sequence = engine.add(prompt(5), SamplingParams(max_tokens=3))
    list(engine.run_until_idle())
    assert (sequence.ttft_s, sequence.e2e_s, sequence.itl_s) == (1.0, 3.0, [1.0, 1.0])


def test_drawn_tokens_come_back_with_their_seed(tiny: SaveTiny) -> None:
    loaded = load(tiny("llama-3-gqa").folder)
    outputs = []
    for seed in (1, 1, 2):
        engine = engine_of(loaded, seed=seed)
        sequence = engine.add(prompt(5), SamplingParams(max_tokens=30, temperature=1.0, top_p=0.9))
        list(engine.run_until_idle())
        outputs.append(sequence.output_ids)
    assert outputs[0] == outputs[1] != outputs[2]
