from __future__ import annotations

from dataclasses import replace

import pytest

from kvtool.catalog.model import Model, Quantisation
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.plan import make_plan
from kvtool.sizing.serve import Commands, commands
from tests.sizing.example import CARD, DEEPSEEK_V3, LLAMA_8B, QWEN3_NEXT


def lines(
    model: Model = LLAMA_8B, dtype: str = "auto", served: str | None = "org/model", **options: object
) -> Commands:
    options = {"gpu": CARD, "max_num_seqs": 64, **options}
    plan = make_plan(model, SizeOptions(**options), dtype)  # type: ignore[arg-type]
    return commands(plan, served=served, context=32768)


def test_the_commands_of_llama() -> None:
    """Flags of vLLM 0.33.0 (engine/arg_utils.py) and SGLang 0.5.23 (srt/arg_groups/fields)."""
    found = lines(parallel=Parallel(tp=4))
    assert found.vllm == (
        "vllm serve org/model --tensor-parallel-size 4 --pipeline-parallel-size 1 --max-model-len 32768 "
        "--max-num-seqs 64 --max-num-batched-tokens 8192 --kv-cache-dtype auto --gpu-memory-utilization 0.92"
    )
    # (4,015,130,624 of weights + 68,033,697,792 of cache) / 80,000,000,000, rounded down
    assert found.sglang == (
        "python -m sglang.launch_server --model-path org/model --tensor-parallel-size 4 --pipeline-parallel-size 1 "
        "--context-length 32768 --max-running-requests 64 --chunked-prefill-size 8192 --kv-cache-dtype auto "
        "--mem-fraction-static 0.900 --page-size 16"
    )
    assert found.reason is None


@pytest.mark.parametrize(
    ("dtype", "vllm", "sglang"),
    [
        ("fp8", "fp8", "fp8_e4m3"),
        ("fp8_e5m2", "fp8_e5m2", "fp8_e5m2"),
        ("bf16", "auto", "auto"),
        ("fp16", "float16", None),
        ("int8_per_token_head", "int8_per_token_head", None),
        ("nvfp4", "nvfp4", "nvfp4"),
        ("mxfp8", None, "mxfp8"),
        ("int8", None, None),
    ],
)
def test_each_engine_has_its_own_names_of_cache_dtypes(dtype: str, vllm: str | None, sglang: str | None) -> None:
    found = lines(dtype=dtype)
    for command, name in ((found.vllm, vllm), (found.sglang, sglang)):
        assert (command is None) == (name is None)
        assert command is None or f"--kv-cache-dtype {name} " in command
    missing = [engine for engine, name in (("vLLM", vllm), ("SGLang", sglang)) if name is None]
    assert (found.reason or "").startswith(" and ".join(missing))


def test_a_bf16_cache_of_an_fp32_checkpoint_is_asked_for() -> None:
    found = lines(replace(LLAMA_8B, dtype="float32"), dtype="bf16")
    assert found.vllm is not None
    assert "--kv-cache-dtype bfloat16" in found.vllm


@pytest.mark.parametrize(
    ("options", "vllm", "sglang"),
    [
        ({"block_size": 32}, "--block-size 32", "--page-size 32"),
        ({"parallel": Parallel(dp=2)}, "--data-parallel-size 2", "--data-parallel-size 2"),
        ({"parallel": Parallel(tp=8, ep=8)}, "--enable-expert-parallel", "--expert-parallel-size 8"),
        ({"parallel": Parallel(tp=8, dcp=8)}, "--decode-context-parallel-size 8", "--decode-context-parallel-size 8"),
        (
            {"parallel": Parallel(tp=8, pp=2)},
            "--nnodes 2 --node-rank 0 --master-addr FIRST_NODE",
            "--nnodes 2 --node-rank 0 --dist-init-addr FIRST_NODE:20000",
        ),
        ({"weight_dtype": "fp8"}, "--quantization fp8", "--quantization fp8"),
        ({"weight_dtype": "bf16"}, "--dtype bfloat16", "--dtype bfloat16"),
        ({"max_num_batched_tokens": 4096}, "--max-num-batched-tokens 4096", "--chunked-prefill-size 4096"),
        ({"gpu_memory_utilization": 0.5}, "--gpu-memory-utilization 0.5", "--mem-fraction-static 0."),
    ],
)
def test_what_was_asked_is_in_the_command(options: dict[str, object], vllm: str, sglang: str) -> None:
    found = lines(DEEPSEEK_V3, **options)
    assert found.vllm is not None
    assert found.sglang is not None
    assert vllm in found.vllm
    assert sglang in found.sglang


def test_state_has_a_dtype_of_its_own() -> None:
    found = lines(QWEN3_NEXT, state_dtype="fp32", calibration=None)
    assert found.vllm is not None
    assert found.sglang is not None
    assert "--mamba-ssm-cache-dtype float32" in found.vllm
    assert "--mamba-ssm-dtype float32" in found.sglang


def test_a_quantised_checkpoint_is_not_quantised_again() -> None:
    quantised = replace(LLAMA_8B, quantisation=Quantisation(method="fp8", bits_per_weight=8.0))
    assert "--quantization" not in (lines(quantised, weight_dtype="fp8").vllm or "--quantization")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"served": None}, "an engine needs an id on the Hub or a folder"),
        ({"weight_dtype": "int4"}, "int4 weights need a checkpoint"),
        ({"parallel": Parallel(tp=8, dp=2)}, "replicas on several nodes"),
    ],
)
def test_no_command_is_better_than_a_wrong_one(given: dict[str, object], reason: str) -> None:
    found = lines(**given)  # type: ignore[arg-type]
    assert found.vllm is found.sglang is None
    assert reason in (found.reason or "")


def test_a_folder_is_quoted() -> None:
    assert "vllm serve '/my models/llama' --tensor" in (lines(served="/my models/llama").vllm or "")
