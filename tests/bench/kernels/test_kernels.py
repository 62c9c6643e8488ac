"""The kernels alone: what a call must move and compute, pages of its own for each call, a check that can fail."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import msgspec
import pytest
import torch

from kvtool.bench import session
from kvtool.bench.kernels import kernels
from kvtool.bench.kernels.calls import Measurement, filled_pool
from kvtool.bench.kernels.kernels import measure_kernels, with_roofline
from kvtool.bench.kernels.options import KernelsOptions, kernels_options
from kvtool.bench.kernels.work import MAX_CALLS, KernelWork, left_out, plan
from kvtool.catalog.model import FullAttention, LatentAttention, Layer, Model, SlidingAttention
from kvtool.catalog.resolve import inline_model, resolve_model
from kvtool.kernels import load_kernels
from kvtool.kernels.pages import Pages
from kvtool.kernels.rows import Rows, Softmax
from kvtool.machine.roofline import Ceiling
from kvtool.machine.timers import Contender, Timed, WarmUp
from kvtool.results import KernelCase, KernelsDocument, encode
from kvtool.sizing.formats import CACHE_FORMATS
from kvtool.system.errors import DeviceError, KvtoolError
from kvtool.units import MIB

CPU = torch.device("cpu")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BACKEND = "triton" if INTERPRETED else "torch"
TINY = inline_model(layers=2, heads=4, kv_heads=2, head_dim=16)
SLIDING = SlidingAttention(kv_heads=2, k_head_dim=16, v_head_dim=16, window=20)
LATENT = LatentAttention(kv_lora_rank=32, qk_rope_head_dim=16, qk_nope_head_dim=24, v_head_dim=24)
CEILING = Ceiling(
    read_gbps=10.0,
    copy_gbps=8.0,
    tflops=1.0,
    read_buffer_bytes=256 * MIB,
    llc_bytes=MIB,
    dtype="bfloat16",
    kernels={},
    samples={},
)


def options(**given: object) -> KernelsOptions:
    """Small ones; `given` overrides."""
    small = {"contexts": (40,), "batch_sizes": (3,), "chunk_len": 24, "num_iters": 2, "dtype": "fp32", "device": "cpu"}
    return KernelsOptions(**(small | given))


def works(model: Model, cache: str = "bf16", dtype: str = "bf16", **given: object) -> dict[str, KernelWork]:
    """One work of each kernel, by its part, but for the prefill that decompresses latents."""
    planned = plan(model, options(**given), [CACHE_FORMATS[cache]], dtype)
    return {"decompressed" if work.decompressed else work.part: work for work in planned}


def of_layers(*caches: object) -> Model:
    return replace(TINY, layers=tuple(Layer(cache=cache) for cache in caches))


def measured(work: KernelWork, num_calls: int = 3, kernels: object = None) -> Measurement:
    random = torch.Generator().manual_seed(0)
    pool = filled_pool(work, 2 * num_calls * work.call_pages, CPU, random)
    return Measurement(work, kernels or load_kernels(BACKEND), pool, num_calls, random)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ceiling without measuring, and a cache of 1 MiB to stream through."""
    monkeypatch.setattr(session, "measure_roofline", lambda device, dtype, seconds: CEILING)
    monkeypatch.setattr(kernels, "last_level_cache_bytes", lambda device: MIB // 4)
    monkeypatch.setattr(kernels, "PASS_SECONDS", 0.01)


# --- bytes and FLOPs -------------------------------------------------------------------------------------------------


def test_decode_reads_every_token_once() -> None:
    """Llama 3.1 8B: 2 x 8 KV heads x 128 x 2 B = 4096 B a token and layer; 4 x 32 heads x 128 FLOPs a key."""
    work = works(resolve_model("llama-3.1-8b"), contexts=(4096,), batch_sizes=(8,))["decode"]
    assert work.kernel == "paged_decode"
    assert work.bytes.kv_read == 8 * 4096 * 4096
    assert work.bytes.other == 8 * 2 * 32 * 128 * 2 + 8 * 256 * 4
    assert work.bytes.flops == 8 * 4096 * 4 * 32 * 128
    assert work.call_pages == 8 * 256


def test_prefill_is_causal() -> None:
    work = works(TINY, contexts=(100,), chunk_len=30)["prefill"]
    assert (work.batch_size, work.query_len) == (1, 30)
    assert work.bytes.kv_read == 100 * 2 * 2 * 16 * 2
    assert work.bytes.flops == sum(range(71, 101)) * 4 * 4 * 16


def test_a_chunk_is_no_longer_than_its_context() -> None:
    assert works(TINY, contexts=(10,), chunk_len=30)["prefill"].query_len == 10


def test_a_window_bounds_what_is_read_and_which_pages_there_are() -> None:
    found = works(of_layers(SLIDING), contexts=(100,), chunk_len=30)
    decode, prefill = found["decode"], found["prefill"]
    assert decode.tokens_in_use == 20
    assert decode.first_page == 80 // 16
    assert decode.call_pages == 3 * (7 - 5)
    assert prefill.tokens_in_use == 20 + 29  # what the first query sees, and a token more for each query after it
    assert prefill.bytes.flops == 30 * 20 * 4 * 4 * 16


def test_latents_are_read_once_and_attended_to_as_they_are() -> None:
    """DeepSeek-V2: 576 elements a token; absorbed, a head takes 2 x (512 + 64) + 2 x 512 FLOPs a key."""
    found = works(resolve_model("deepseek-v2-lite"), contexts=(1000,), batch_sizes=(2,), chunk_len=1)
    assert [work.kernel for work in found.values()] == ["mla_decode", "mla_prefill", "store_latent"]
    assert found["decode"].bytes.kv_read == 2 * 1000 * 576 * 2
    assert found["decode"].bytes.flops == 2 * 1000 * 16 * 2 * (2 * 512 + 64)
    assert found["prefill"].bytes.flops == found["decode"].bytes.flops // 2
    assert works(resolve_model("deepseek-v2-lite"))["prefill"].bytes.flops == sum(range(17, 41)) * 16 * 2 * 1088


def test_a_prefill_as_the_engine_does_it_decompresses_latents_first() -> None:
    """DeepSeek-V2-Lite: 16 heads of 128 + 64 columns and values of 128; all 40 tokens go through [16 x 256, 512]."""
    work = works(resolve_model("deepseek-v2-lite"))["decompressed"]
    assert work.kernel == "mla_prefill_decompressed"
    assert work.bytes.flops == sum(range(17, 41)) * 16 * 2 * (128 + 64 + 128) + 2 * 40 * 16 * 256 * 512
    assert work.bytes.other == 24 * 16 * (192 + 128) * 2 + 3 * 4 + 16 * 256 * 512 * 2
    without = Layer(cache=replace(LATENT, qk_nope_head_dim=None))
    assert "decompressed" not in works(replace(TINY, layers=(without,)))


def test_a_store_reads_rows_in_the_computing_dtype_and_writes_the_cache_s() -> None:
    work = works(TINY, cache="fp8", chunk_len=30)["store"]
    assert (work.kernel, work.new_tokens) == ("store_kv", 30)
    assert work.bytes.kv_written == 30 * 2 * 2 * 16
    assert work.bytes.other == 2 * work.bytes.kv_written
    assert work.bytes.flops == 0


def test_a_pass_streams_through_what_is_asked_but_prefill_computes() -> None:
    found = works(TINY)
    assert found["decode"].calls(MIB) == -(-MIB // (3 * 40 * 128))
    assert found["decode"].calls(1 << 50) == MAX_CALLS
    assert found["prefill"].calls(MIB) == 1


def test_each_shape_of_layer_once_and_others_named() -> None:
    gemma = resolve_model("gemma-3-1b")
    planned = plan(gemma, options(parts=("prefill",)), [CACHE_FORMATS["bf16"]], "bf16")
    assert {work.part for work in planned} == {"prefill"}
    kinds = [work.spec.kind for work in plan(gemma, options(), [CACHE_FORMATS["bf16"]], "bf16")]
    assert set(kinds) == {"sliding", "full"}
    assert left_out(gemma, CACHE_FORMATS["bf16"]) == []
    (line,) = left_out(resolve_model("qwen3-next-80b-a3b-instruct"), CACHE_FORMATS["bf16"])
    assert line.startswith("state layers were not measured")


@pytest.mark.parametrize("model", [resolve_model("deepseek-v3.2"), of_layers(None)], ids=["sparse", "none"])
def test_a_model_without_a_kernel_is_refused_by_name(model: Model) -> None:
    with pytest.raises(KvtoolError, match=f"{model.id} has no layer to run"):
        works(model)


# --- calls and their check -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [None, SLIDING, LATENT])
@pytest.mark.parametrize("block_size", [1, 16, 64])
def test_every_part_equals_the_reference(cache: object, block_size: int) -> None:
    model = TINY if cache is None else of_layers(cache)
    fp8 = () if INTERPRETED else (("fp8", "bf16"), ("fp8_e5m2", "fp16"))  # which the interpreter does not round right
    for cache_dtype, dtype in (("fp32", "fp32"), ("bf16", "bf16"), *fp8):
        for work in works(model, cache=cache_dtype, dtype=dtype, block_sizes=(block_size,)).values():
            check = measured(work).check()
            assert check.outputs_equal, f"{work.name}: {check.text}"


def test_vectors_with_scales_of_their_own_equal_the_reference() -> None:
    for work in works(TINY, cache="int8_per_token_head", dtype="bf16").values():
        check = measured(work).check()
        assert check.outputs_equal, f"{work.name}: {check.text}"


def test_triton_takes_the_same_calls() -> None:
    """In its interpreter, which a process chooses when it imports triton."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__, "-k", "equals_the_reference and 16"]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_calls_of_a_pass_share_no_page_and_follow_no_order() -> None:
    work = works(TINY, contexts=(320,))["decode"]
    tables = torch.stack([call.args[2].block_tables for call in measured(work, num_calls=5).calls])
    assert tables.shape == (5, 3, 20)
    assert len(tables.unique()) == tables.numel()
    assert (tables.flatten().diff() != 1).float().mean() > 0.9


def test_rows_to_store_have_slots_of_their_own() -> None:
    work = works(TINY, chunk_len=30)["store"]
    slots = torch.stack([call.args[-1] for call in measured(work, num_calls=5).calls])
    assert slots.shape == (5, 30)
    assert len(slots.unique()) == slots.numel()


class OneTokenShort:
    """Kernels that forget the last token of every sequence."""

    def __getattr__(self, name: str) -> object:
        kernel = getattr(load_kernels("torch"), name)

        def forgetful(q: torch.Tensor, pages: Pages, rows: Rows, softmax: Softmax) -> torch.Tensor:
            return kernel(q, pages, replace(rows, seq_lens=rows.seq_lens - 1), softmax)

        return forgetful


@pytest.mark.parametrize("part", ["decode", "prefill"])
def test_a_wrong_kernel_is_found(part: str) -> None:
    check = measured(works(TINY, dtype="fp32")[part], kernels=OneTokenShort()).check()
    assert not check.outputs_equal
    assert "NOT equal" in check.text


def test_nan_is_wrong_and_stays_out_of_the_document() -> None:
    measurement = measured(works(TINY)["decode"])
    measurement.layer.v.fill_(float("nan"))
    check = measurement.check()
    assert (check.outputs_equal, check.max_abs_diff) == (False, None)


# --- the run ---------------------------------------------------------------------------------------------------------


def run(model: Model = TINY, **given: object) -> session.Outcome[KernelsDocument]:
    return measure_kernels(model, options(**given), progress=lambda doing, done: None)


def test_a_run_is_complete_and_finite(quick: None) -> None:
    outcome = run(batch_sizes=(1, 3), block_sizes=(16, 64), kv_cache_dtypes=("auto", "fp8"))
    cases = outcome.document.cases
    assert not outcome.unequal
    assert len(cases) == len({case.name for case in cases}) == 2 * 2 * (2 + 1 + 3)
    encode(outcome.document)
    decode = cases[0]
    assert decode.inputs["kv_cache_dtype"] == "fp32"
    assert decode.metrics.time_ms.p50 == pytest.approx(1e3 * sum(decode.samples_s) / 2)
    moved = decode.bytes.kv_read + decode.bytes.other
    assert decode.metrics.gbps == pytest.approx(moved / decode.metrics.time_ms.p50 / 1e6)
    assert decode.memory.working_set_bytes == decode.memory.calls_per_sample * decode.bytes.kv_read
    assert decode.memory.pool_bytes >= decode.memory.working_set_bytes
    assert cases[-1].inputs["context"] is None


def test_the_same_seed_draws_the_same_cases(quick: None) -> None:
    first, again, other = (run(seed=seed).document.cases for seed in (1, 1, 2))
    assert [case.check for case in first] == [case.check for case in again]
    assert [case.check for case in first] != [case.check for case in other]


def test_ctrl_c_keeps_what_was_measured(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    real, done = kernels._case, []

    def interrupted(*args: object) -> KernelCase:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(real(*args))
        return done[-1]

    monkeypatch.setattr(kernels, "_case", interrupted)
    outcome = run()
    assert outcome.interrupted
    assert len(outcome.document.cases) == 2
    assert "interrupted: cases are missing" in outcome.document.assumptions


def test_a_case_that_fails_is_told_and_the_rest_goes_on(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    real = kernels._case

    def failing(work: KernelWork, *given: object) -> KernelCase:
        if work.part == "prefill":
            raise RuntimeError("CUDA error: an illegal memory access")
        return real(work, *given)

    monkeypatch.setattr(kernels, "_case", failing)
    outcome = run()
    assert {case.kernel for case in outcome.document.cases} == {"paged_decode", "store_kv"}
    told = "paged_prefill: 40 x 1 failed: the device failed while measuring"
    assert [line[: len(told)] for line in outcome.errors] == [told]
    assert f"not measured: {outcome.errors[0]}" in outcome.document.assumptions


def test_what_does_not_fit_is_refused_before_anything_runs(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available_bytes", lambda device: 20 * MIB)
    monkeypatch.setattr(kernels, "Session", lambda *args: pytest.fail("it ran"))
    with pytest.raises(DeviceError, match=r"paged_decode at context 128k x batch 3 needs .* lower --context") as error:
        run(contexts=(40, 131072))
    assert "\n" not in str(error.value)


def test_a_default_grid_leaves_out_what_does_not_fit(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available_bytes", lambda device: 20 * MIB)
    outcome = run(contexts=(40, 131072), drop_oversized=True)
    assert {case.inputs["context"] for case in outcome.document.cases} == {40, None}
    assert any("do not fit the memory" in line for line in outcome.document.assumptions)


def test_defaults_are_the_device_s_and_only_they_may_be_dropped() -> None:
    assert kernels_options("cpu").contexts == (512, 4096)
    assert kernels_options("cpu").drop_oversized
    assert kernels_options("cpu", num_iters=3).drop_oversized
    assert not kernels_options("cpu", contexts=(64,)).drop_oversized


def test_a_cold_start_and_a_warm_up_are_told_apart_from_the_times(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "first_call_s", lambda call, device: 7.5)
    monkeypatch.setattr(kernels, "call_timer", lambda device: lambda call: 0.5)
    monkeypatch.setattr(
        kernels,
        "time_in_turns",
        lambda contenders, **_: [Timed([1.0, 3.0], WarmUp(first_s=9.0, calls=8, steady=False))],
    )
    outcome = run()
    for case in outcome.document.cases:
        assert (case.cold_start.first_call_s, case.cold_start.capture_s, case.steady) == (7.5, None, False)
        assert case.samples_s == [1.0 / case.memory.calls_per_sample, 3.0 / case.memory.calls_per_sample]
    (line,) = [line for line in outcome.document.assumptions if line.startswith("not steady")]
    assert outcome.document.cases[0].name in line


@pytest.mark.parametrize(("llc_bytes", "flushed"), [(40_000, False), (80_000, True), (None, False)])
def test_a_pass_through_less_than_twice_the_cache_follows_a_flush(
    quick: None, llc_bytes: int | None, flushed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five calls of 3 x 40 tokens x 256 B are 153,600 B."""
    entered = []

    def take(contenders: list[Contender], **_: object) -> list[Timed]:
        entered.extend(contenders)
        return [Timed([1.0], WarmUp(first_s=1.0, calls=1, steady=True))]

    monkeypatch.setattr(kernels, "time_in_turns", take)
    monkeypatch.setattr(kernels, "last_level_cache_bytes", lambda device: llc_bytes)
    monkeypatch.setattr(kernels, "_stream_bytes", lambda device, llc: 153_600)
    monkeypatch.setattr(kernels, "call_timer", lambda device: lambda call: 0.0)
    decode = run(num_iters=1).document.cases[0]
    assert decode.memory.working_set_bytes == 153_600
    assert decode.memory.flushed is flushed
    assert (entered[0].flush is not None) is flushed


# --- the roofline ----------------------------------------------------------------------------------------------------


def case_of(seconds: float, *, working_set_bytes: int = 2 * MIB, part: str = "decode") -> KernelCase:
    from kvtool import results

    work = works(TINY)[part]
    summary = results.Summary(**dict.fromkeys(("mean", "std", "p50", "p90", "p95", "p99"), 1e3 * seconds), n=1)
    return KernelCase(
        name=work.name,
        kernel=work.kernel,
        inputs={},
        samples_s=[seconds],
        metrics=results.KernelMetrics(time_ms=summary, gbps=1.0, tflops=1.0),
        bytes=results.KernelBytes(kv_read=9_000_000, kv_written=0, other=1_000_000, flops=10**9),
        memory=results.KernelMemory(pool_bytes=0, working_set_bytes=working_set_bytes, calls_per_sample=1),
        roofline=results.KernelRoofline(),
        check=results.KernelCheck(outputs_equal=True, max_abs_diff=0.0, text=""),
    )


def test_shares_of_what_was_measured() -> None:
    """10 MB at 10 GB/s and 1 GFLOP at 1 TFLOP/s take 1 ms each."""
    roofline = with_roofline(case_of(2e-3), CEILING).roofline
    assert roofline.mbu == pytest.approx(0.5)
    assert roofline.mfu == pytest.approx(0.5)
    assert roofline.ideal_ms == pytest.approx(1.0)
    assert (roofline.bound, roofline.reason) == ("memory", None)


def test_what_the_cache_may_serve_has_no_mbu() -> None:
    roofline = with_roofline(case_of(2e-3, working_set_bytes=2 * MIB - 1), CEILING).roofline
    assert roofline.mbu is None
    assert "under 2x the last-level cache" in (roofline.reason or "")


def test_what_is_read_after_a_flush_comes_from_memory_and_what_is_written_may_not_be_there_yet() -> None:
    small = case_of(2e-3, working_set_bytes=MIB)
    flushed = msgspec.structs.replace(small, memory=msgspec.structs.replace(small.memory, flushed=True))
    assert with_roofline(flushed, CEILING).roofline.mbu == pytest.approx(0.5)
    writes = msgspec.structs.replace(flushed.bytes, kv_read=0, kv_written=9_000_000)
    assert with_roofline(msgspec.structs.replace(flushed, bytes=writes), CEILING).roofline.mbu is None


def test_faster_than_the_device_is_an_accounting_error() -> None:
    assert with_roofline(case_of(1e-3 / 1.02), CEILING).roofline.reason is None
    roofline = with_roofline(case_of(1e-3 / 1.04), CEILING).roofline
    assert (roofline.mbu, roofline.mfu) == (None, None)
    assert (roofline.reason or "").startswith("accounting error: MBU 1.04 and MFU 1.04")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"contexts": (0,)}, "context 0 must be at least 1"),
        ({"batch_sizes": (1, -2)}, "batch size -2"),
        ({"block_sizes": (0,)}, "block size 0"),
        ({"chunk_len": 0}, "chunk-len 0"),
        ({"num_iters": 0}, "num-iters 0"),
        ({"num_iters_warmup": -1}, "num-iters-warmup -1"),
        ({"peers": ("spda",)}, "unknown peer 'spda': did you mean sdpa"),
        ({"dtype": "fp8"}, "dtype 'fp8' is not one the kernels compute in"),
    ],
)
def test_options_that_no_run_can_be(given: dict[str, object], message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        options(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kv_cache_dtypes": ("int8",)}, "'int8'"),
        ({"kv_cache_dtypes": ("fp9",)}, "unknown KV cache dtype 'fp9'"),
        ({"backend": "triton"}, "needs a CUDA device"),
        ({"device": "tpu"}, "'tpu'"),
    ],
)
def test_setups_that_are_not_here(given: dict[str, object], message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        run(**given)


def test_heads_that_do_not_divide_are_refused() -> None:
    odd = of_layers(FullAttention(kv_heads=3, k_head_dim=16, v_head_dim=16))
    with pytest.raises(KvtoolError, match=r"4 query heads of .* do not divide among 3 KV heads"):
        works(odd)
