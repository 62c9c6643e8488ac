from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from kvtool.catalog.model import Model, Quantisation
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.plan import make_plan
from kvtool.sizing.solve.command import Command, command
from kvtool.sizing.solve.start import start_of
from tests.sizing.example import CARD, DEEPSEEK_V3, LLAMA_8B, QWEN3_NEXT


@dataclass(frozen=True)
class Lines:
    vllm: str | None
    sglang: str | None
    reasons: list[str | None]


def lines(model: Model = LLAMA_8B, dtype: str = "auto", loads: str | None = "org/model", **options: object) -> Lines:
    given = {"gpu": CARD, "max_num_seqs": 64, "max_model_len": 32768, "kv_cache_dtypes": (dtype,), **options}
    sized = SizeOptions(**given)  # type: ignore[arg-type]
    plan = make_plan(model, sized, dtype)
    assert plan.limits is not None
    assert plan.memory is not None
    found: list[Command] = []
    for name in ("vllm", "sglang"):
        start = start_of(name, sized, plan.limits, plan.memory)
        found.append(
            command(model, start, loads=loads, cache_dtype=plan.cache_format.name, weight_dtype=sized.weight_dtype)
        )
    return Lines(found[0].line, found[1].line, [one.reason for one in found])


def test_the_commands_of_llama() -> None:
    """Flags of vLLM 0.33.0 (engine/arg_utils.py) and SGLang 0.5.23 (srt/arg_groups/fields)."""
    found = lines(parallel=Parallel(tp=4))
    assert found.vllm == (
        "vllm serve org/model --tensor-parallel-size 4 --pipeline-parallel-size 1 --max-model-len 32768 "
        "--max-num-seqs 64 --max-num-batched-tokens 8192 --kv-cache-dtype auto --gpu-memory-utilization 0.92"
    )
    # (4,015,130,624 of weights + 68,471,795,429 of cache) / (80,000,000,000 less the 614 MiB of a start), rounded down
    assert found.sglang == (
        "python -m sglang.launch_server --model-path org/model --tensor-parallel-size 4 --pipeline-parallel-size 1 "
        "--context-length 32768 --max-running-requests 64 --chunked-prefill-size 8192 --kv-cache-dtype auto "
        "--mem-fraction-static 0.913"
    )
    assert found.reasons == [None, None]


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
    for line, name in ((found.vllm, vllm), (found.sglang, sglang)):
        assert (line is None) == (name is None)
        assert line is None or f"--kv-cache-dtype {name} " in line
    for reason, engine, name in zip(found.reasons, ("vLLM", "SGLang"), (vllm, sglang), strict=True):
        assert reason == (None if name else f"{engine} has no {dtype} cache for this model")


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
    assert lines(quantised, weight_dtype="bf16").reasons == ["no command: org/model is stored in fp8, not in bf16"] * 2


def test_flags_of_the_engine_itself_are_in_its_command() -> None:
    vllm = EngineOptions(name="vllm", gpu=CARD, block_size=64, num_gpu_blocks_override=9, async_scheduling=False)
    assert (lines(engine=vllm).vllm or "").endswith("--block-size 64 --num-gpu-blocks-override 9 --no-async-scheduling")
    sglang = EngineOptions(
        name="sglang", gpu=CARD, mem_fraction_static=0.7, max_running_requests=9, max_total_tokens=512
    )
    line = lines(engine=sglang).sglang or ""
    for words in ("--mem-fraction-static 0.700", "--max-running-requests 9", "--max-total-tokens 512"):
        assert words in line


def test_replicas_of_the_attention_share_out_the_requests() -> None:
    """SGLang divides --max-running-requests among the replicas of --enable-dp-attention (srt/managers/scheduler)."""
    found = lines(DEEPSEEK_V3, parallel=Parallel(tp=8, dp=8, dp_attention=True), max_num_seqs=4)
    assert "--max-running-requests 32 " in (found.sglang or "")
    assert "--attn-dp-size 8 " in (found.sglang or "")  # --enable-dp-attention is its old name
    assert "--data-parallel-size" not in (found.sglang or "")


def test_chunks_of_sglang_are_whole_pages() -> None:
    """A step of 3 x 1,000 tokens at most; SGLang stops where its pages do not divide the chunk."""
    found = lines(max_num_seqs=3, max_model_len=1000)
    assert "--max-num-batched-tokens 3000 " in (found.vllm or "")
    assert "--chunked-prefill-size 3072 " in (found.sglang or "")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"loads": None}, "an engine needs an id on the Hub or a folder"),
        ({"weight_dtype": "int4"}, "int4 weights need a checkpoint"),
        ({"parallel": Parallel(tp=8, dp=2)}, "replicas on several nodes"),
    ],
)
def test_no_command_is_better_than_a_wrong_one(given: dict[str, object], reason: str) -> None:
    found = lines(**given)  # type: ignore[arg-type]
    assert found.vllm is found.sglang is None
    assert all(reason in (why or "") for why in found.reasons)


def test_a_folder_is_quoted() -> None:
    assert "vllm serve '/my models/llama' --tensor" in (lines(loads="/my models/llama").vllm or "")
