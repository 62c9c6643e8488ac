"""Engines on a folder of ours: transformers' own for real, vLLM and SGLang as stand-ins with their signatures."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from kvtool.bench.engines.checkpoint import Checkpoint, write_random
from kvtool.bench.engines.engine import ENGINE_PEERS, load_engine_peer
from kvtool.bench.peers import PeerError
from kvtool.engine.engine import Engine
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.sequence import SamplingParams
from tests.bench.tiny_model import TINY, config

PROMPTS = [list(range(5, 26)), list(range(109, 130))]
OUTPUT_LEN = 6


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return LoadedModel(TINY, config(), max_positions=64)


@pytest.fixture(scope="module")
def checkpoint(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("weights")
    write_random(loaded, folder)
    return Checkpoint(folder, torch.device("cpu"), "fp32", max_tokens=64, max_batch=2, token_bytes=512)


@pytest.fixture(scope="module")
def ours(loaded: LoadedModel) -> list[list[int]]:
    engine = Engine(loaded, num_pages=16)
    sequences = [engine.add(prompt, SamplingParams(max_tokens=OUTPUT_LEN)) for prompt in PROMPTS]
    for _ in engine.run_until_idle():
        pass
    return [sequence.output_ids for sequence in sequences]


def test_every_engine_is_a_module_that_loads_without_its_library() -> None:
    for name in ENGINE_PEERS:
        assert callable(load_engine_peer(name).start)
    assert not {"vllm", "sglang"} & sys.modules.keys()


@pytest.mark.parametrize("name", ["transformers", "transformers-static", "transformers-paged"])
def test_transformers_says_our_tokens_again_and_again(name: str, checkpoint: Checkpoint, ours: list[list[int]]) -> None:
    peer = load_engine_peer(name)
    assert (peer.version() or "")[0].isdigit()
    engine = peer.start(checkpoint)
    for prompts in (PROMPTS, PROMPTS[:1], PROMPTS):  # another shape between
        start_s = time.perf_counter()
        answers = engine.generate(prompts, OUTPUT_LEN)
        assert answers.output_ids == ours[: len(prompts)]
        assert 0 < answers.first_s < answers.last_s < time.perf_counter() - start_s
    engine.close()


def test_an_older_transformers_without_timestamps_is_refused(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate_batch(inputs: Any, generation_config: Any = None, progress_bar: bool = True) -> None: ...

    monkeypatch.setattr(checkpoint.in_transformers, "generate_batch", generate_batch, raising=False)
    with pytest.raises(
        PeerError, match="no generate_batch with continuous_batching_config, persistent_manager, record"
    ):
        load_engine_peer("transformers-paged").start(checkpoint)


def test_an_engine_that_gives_up_is_no_measurement(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load_engine_peer("transformers-paged").start(checkpoint)
    monkeypatch.setattr(engine.model, "generate_batch", lambda **named: {})
    with pytest.raises(PeerError, match="0 of 2 prompts were answered in full"):
        engine.generate(PROMPTS, OUTPUT_LEN)


# --- stand-ins: they generate with transformers, on a clock of their own ---------------------------------------------


def continuation(checkpoint: Checkpoint, prompt: list[int], length: int) -> list[int]:
    rows = checkpoint.in_transformers.generate(torch.tensor([prompt]), max_new_tokens=length)
    return rows[0, len(prompt) :].tolist()


@pytest.fixture
def on_a_gpu(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """The checkpoint as if its device were a card, half of it free."""
    monkeypatch.setattr(Checkpoint, "require_first_gpu", lambda self, library: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (40 << 30, 80 << 30))
    return checkpoint


CLOCK = SimpleNamespace(time=lambda: 1000.0)  # stands still: vLLM's stamps alone tell the time


def fake_vllm(checkpoint: Checkpoint, seen: dict[str, Any]) -> ModuleType:
    """vllm 0.33: LLM(model, *, ...), generate(prompts, sampling_params, *, use_tqdm), RequestOutput.metrics."""

    class SamplingParams:
        def __init__(self, *, temperature: float, max_tokens: int, ignore_eos: bool, detokenize: bool) -> None:
            assert (temperature, ignore_eos, detokenize) == (0.0, True, False)
            self.max_tokens = max_tokens

    class LLM:
        def __init__(
            self,
            model: str,
            *,
            skip_tokenizer_init: bool = False,
            dtype: str = "auto",
            seed: int = 0,
            gpu_memory_utilization: float = 0.92,
            kv_cache_memory_bytes: int | None = None,
            **engine_arguments: Any,
        ) -> None:
            seen.update(engine_arguments, dtype=dtype, bytes=kv_cache_memory_bytes, share=gpu_memory_utilization)
            assert Path(model, "config.json").is_file()
            core = SimpleNamespace(shutdown=lambda: seen.update(closed=True))
            self.llm_engine = SimpleNamespace(engine_core=core)

        def generate(self, prompts: list[Any], sampling_params: Any = None, *, use_tqdm: bool = True) -> list[Any]:
            now = CLOCK.time()
            return [
                SimpleNamespace(
                    outputs=[
                        SimpleNamespace(
                            token_ids=continuation(checkpoint, p["prompt_token_ids"], sampling_params.max_tokens)
                        )
                    ],
                    metrics=SimpleNamespace(
                        arrival_time=now + 0.1 * i,
                        first_token_latency=0.5,
                        first_token_ts=7000.0 + i,
                        last_token_ts=7003.0 + i,
                    ),
                )
                for i, p in enumerate(prompts)
            ]

    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    return module


def test_vllm_is_asked_for_exact_lengths_and_timed_on_one_clock(
    on_a_gpu: Checkpoint, ours: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm(on_a_gpu, seen))
    monkeypatch.setattr("kvtool.bench.engines.vllm.time", CLOCK)
    engine = load_engine_peer("vllm").start(on_a_gpu)
    answers = engine.generate(PROMPTS, OUTPUT_LEN)
    assert answers.output_ids == ours
    assert answers.first_s == pytest.approx(0.6)
    assert answers.last_s - answers.first_s == pytest.approx(3.0)
    engine.close()
    assert seen == {
        "dtype": "float32",
        "bytes": (2 * (64 + 512) + 512) * 512,
        "share": 0.45,
        "max_model_len": 64,
        "enable_prefix_caching": False,
        "disable_log_stats": False,
        "closed": True,
    }


def fake_sglang(checkpoint: Checkpoint, seen: dict[str, Any]) -> ModuleType:
    """sglang 0.5: Engine(**server_args), generate(input_ids, sampling_params, stream), shutdown()."""

    class Engine:
        def __init__(self, **server_args: Any) -> None:
            seen.update(server_args)

        def generate(
            self,
            prompt: Any = None,
            sampling_params: Any = None,
            input_ids: Any = None,
            stream: bool = False,
        ) -> Iterator[dict[str, Any]]:
            assert stream
            assert (sampling_params["temperature"], sampling_params["ignore_eos"]) == (0.0, True)
            rows = [continuation(checkpoint, row, sampling_params["max_new_tokens"]) for row in input_ids]
            grown: list[list[int]] = [[] for _ in rows]
            for step in range(len(rows[0])):
                for index in reversed(range(len(rows))):
                    time.sleep(0.02)
                    grown[index].append(rows[index][step])
                    yield {"index": index, "output_ids": grown[index], "meta_info": {"id": str(index)}}

        def shutdown(self) -> None:
            seen["closed"] = True

    module = ModuleType("sglang")
    module.Engine = Engine  # type: ignore[attr-defined]
    return module


def test_sglang_is_timed_by_what_it_streams(
    on_a_gpu: Checkpoint, ours: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setitem(sys.modules, "sglang", fake_sglang(on_a_gpu, seen))
    engine = load_engine_peer("sglang").start(on_a_gpu)
    answers = engine.generate(PROMPTS, OUTPUT_LEN)
    assert answers.output_ids == ours
    assert answers.first_s >= 0.04
    assert answers.last_s - answers.first_s >= 10 * 0.02
    engine.close()
    assert seen.pop("closed")
    assert (seen["dtype"], seen["disable_radix_cache"], seen["skip_tokenizer_init"]) == ("float32", True, True)
    assert seen["max_total_tokens"] >= 2 * 64
    with pytest.raises(PeerError, match="one of its processes died"):  # its own handler would end this process
        seen["custom_sigquit_handler"](signal.SIGQUIT, None)


@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_a_library_for_gpus_is_not_even_imported_on_a_cpu(name: str, checkpoint: Checkpoint) -> None:
    with pytest.raises(PeerError, match="is compared on the first CUDA device, not on cpu"):
        load_engine_peer(name).start(checkpoint)
    assert name not in sys.modules


def test_a_library_that_is_not_there_is_said(on_a_gpu: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(PeerError, match="not importable"):
        load_engine_peer("vllm").start(on_a_gpu)
