"""Real lines in, numbers out; anything else in, one error or nothing, never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtool.system.errors import KvtoolError
from kvtool.units import GIB
from kvtool.verify.facts import gib
from kvtool.verify.items import read_items
from kvtool.verify.lines import clean, read_lines
from kvtool.verify.read import read_facts
from tests.verify.helpers import LOGS, from_text
from tests.verify.helpers import quoted as read


def test_rounding_leaves_a_range_open() -> None:
    assert gib("24.0").low == 23.995 * GIB
    assert gib("56.21").high == pytest.approx(56.215 * GIB)
    assert gib("14.9888").high == pytest.approx(14.98885 * GIB)


def test_every_quoted_log_is_named_in_the_sources() -> None:
    sources = (LOGS / "SOURCES.md").read_text()
    assert [path.name for path in LOGS.iterdir() if path.name not in sources and path.name != "SOURCES.md"] == []


def test_vllm_of_today_tells_every_term() -> None:
    facts = read("vllm_0_31_llama_3_1_8b.log")
    assert facts.engine == "vllm"
    values = {reading.term: reading.figure.value for reading in facts.readings}
    assert values["tokens"] == 460_496
    assert values["max_model_len"] == 131_072
    assert values["max_concurrency"] == 3.51
    assert values["weights"] == 15 * GIB
    assert values["consumed"] / GIB == pytest.approx(15.26)
    assert values["activation"] / GIB == pytest.approx(1.44)
    assert values["graphs"] / GIB == pytest.approx(0.23)
    assert values["kv_pool"] / GIB == pytest.approx(56.21)
    assert facts.flags["gpu_memory_utilization"] == "0.92"


def test_vllm_0_10_says_its_flags_and_the_pool_to_the_byte() -> None:
    facts = read("vllm_0_10_llava_mistral_7b.log")
    assert (facts.version, facts.model) == ("0.10.2", "llava-hf/llava-v1.6-mistral-7b-hf")
    assert facts.flags["max_num_batched_tokens"] == "16384"
    assert facts.flags["dtype"] == "torch.float16"
    pool = facts.last("kv_pool")
    assert pool is not None
    assert pool.exact
    assert pool.value == 59_212_694_937


def test_flags_quoted_after_the_numbers_belong_to_them() -> None:
    facts = read("vllm_0_24_qwen3_6_35b_fp8.log")
    assert facts.version == "0.24.0"
    assert facts.flags["kv_cache_dtype"] == "fp8"
    assert facts.flags["max_num_seqs"] == "1"
    assert facts.model == "~/.cache/huggingface/qwen3.6-35b-a3b-nvfp4"


def test_vllm_before_v1_tells_blocks() -> None:
    facts = read("vllm_0_6_llama_3_1_8b.log")
    assert [figure.value for figure in facts.of("num_blocks")] == [1952]
    assert facts.flags["gpu_memory_utilization"] == "0.90"
    refused = read("vllm_0_6_llama_3_1_8b_too_long.log")
    assert refused.refusal is not None
    assert refused.refusal.kind == "one_request"
    assert [figure.value for figure in refused.of("stored_tokens")] == [23_648]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("vllm_gpt_oss_120b_refused.log", "one_request"),
        ("vllm_0_15_qwen3_coder_30b_refused.log", "one_request"),
        ("vllm_0_9_free_memory.log", "free_memory"),
        ("vllm_no_memory_graphs.log", "no_kv_memory"),
    ],
)
def test_refusals_are_named(name: str, kind: str) -> None:
    refusal = read(name).refusal
    assert refusal is not None
    assert refusal.kind == kind


def test_the_length_that_vllm_would_take() -> None:
    facts = read("vllm_0_15_qwen3_coder_30b_refused.log")
    assert [figure.value for figure in facts.of("estimated_max_len")] == [34_736]
    assert [figure.value / GIB for figure in facts.of("one_request")] == [24.0]


def test_a_message_that_a_terminal_broke() -> None:
    facts = from_text(
        "ValueError: To serve at least one request with the model's max seq len (1048576),\n"
        "22.5 GiB KV cache is needed, which is larger than the available KV cache memory (17.39 GiB).\n"
        "Based on the available memory, the estimated maximum model length is 810208."
    )
    assert [figure.value for figure in facts.of("estimated_max_len")] == [810_208]


def test_sglang_pools_ranks_and_states() -> None:
    facts = read("sglang_mimo_v2_flash_tp4.log")
    assert facts.engine == "sglang"
    assert {reading.rank for reading in facts.readings} == {"TP0", "TP1", "TP2", "TP3"}
    assert facts.first("full_tokens") == facts.last("full_tokens")
    latent = read("sglang_ling_3_flash.log")
    assert [figure.value for figure in latent.of("latent_tokens")] == [1_226_984]
    assert [figure.value for figure in latent.of("state_slots")] == [117]


def test_metrics_of_both_engines() -> None:
    vllm = read("vllm_metrics_qwen3_32b.txt")
    assert (vllm.engine, vllm.model) == ("vllm", "qwen3-32b")
    assert [figure.value for figure in vllm.of("num_blocks")] == [573]
    assert vllm.flags["gpu_memory_utilization"] == "0.82"
    assert "num_gpu_blocks_override" not in vllm.flags
    sglang = read("sglang_metrics.txt")
    assert [figure.value for figure in sglang.of("tokens")] == [570_979]


def test_prometheus_writes_large_numbers_with_an_exponent() -> None:
    facts = from_text('sglang:max_total_num_tokens{model_name="m"} 1.226984e+06')
    assert [figure.value for figure in facts.of("tokens")] == [1_226_984]


def test_the_last_of_several_starts_counts() -> None:
    start = "INFO non-default args: {{'model': 'm', 'max_model_len': {0}}}\nAvailable KV cache memory: {1} GiB"
    facts = from_text(f"{start.format(4096, '1.00')}\n{start.format(8192, '2.00')}")
    assert facts.starts == 2
    assert facts.flags["max_model_len"] == "8192"
    assert [figure.value for figure in facts.of("kv_pool")] == [2 * GIB]


def test_the_rank_with_the_least_memory() -> None:
    facts = from_text(
        "\x1b[1;36m(Worker_TP0 pid=1)\x1b[0;0m INFO Available KV cache memory: 6.90 GiB\n"
        "(VllmWorker rank=1 pid=2) INFO Available KV cache memory: 6.87 GiB"
    )
    smallest = facts.smallest("kv_pool")
    assert smallest is not None
    assert smallest.value / GIB == pytest.approx(6.87)
    assert [reading.rank for reading in facts.readings] == ["TP0", "TP1"]


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("{'a': 1, 'b': 'x, y', 'c': {\"d\": [1, 2]}, 'e': C(f='g'), 'h': None}", {"a": "1", "b": "x, y", "h": "None"}),
        ("(model_path='m', tp_size=2, host='0.0.0.0')", {"model_path": "m", "tp_size": "2"}),
        ("model='m', dtype=torch.bfloat16, x=1", {"model": "m", "dtype": "torch.bfloat16", "x": "1"}),
    ],
)
def test_items_of_a_repr(text: str, items: dict[str, str]) -> None:
    assert items.items() <= read_items(text).items()


def test_an_item_cut_short_is_left_out() -> None:
    assert read_items("{'model': 'm', 'max_model_len': 1310") == {"model": "m"}
    assert read_items("(model_path='m', tp_size=") == {"model_path": "m"}
    assert read_items("model='m', max_seq_len='13") == {"model": "m"}


@given(st.text())
def test_any_text_is_items_or_nothing(text: str) -> None:
    assert all(key.isidentifier() for key in read_items(text))


def test_nothing_of_an_engine_is_said_in_one_line() -> None:
    for text in ("", "hello", "\x00\xff" * 100, "a" * 100_000):
        with pytest.raises(KvtoolError, match="has no line that kvtool knows"):
            from_text(text)


WHOLE = sorted(path.name for path in LOGS.iterdir() if path.suffix in (".log", ".txt"))


@given(st.sampled_from(WHOLE), st.data())
def test_a_log_cut_anywhere_with_junk_in_it_never_breaks_the_reader(name: str, data: st.DataObject) -> None:
    raw = (LOGS / name).read_bytes()
    start, end = sorted((data.draw(st.integers(0, len(raw))), data.draw(st.integers(0, len(raw)))))
    spot = data.draw(st.integers(0, len(raw)))
    damaged = raw[start:spot] + data.draw(st.binary(max_size=40)) + raw[spot:end]
    try:
        facts = from_text(damaged.decode("utf-8", errors="replace"))
    except KvtoolError:
        return
    assert all(reading.figure.low <= reading.figure.value <= reading.figure.high for reading in facts.readings)


def test_colours_and_control_characters_go() -> None:
    assert clean("\x1b[0;36m(EngineCore pid=1)\x1b[0m a\x00b") == "(EngineCore pid=1) ab"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for bad in (str(tmp_path / "none.log"), str(tmp_path), "a\0b"):
        with pytest.raises(KvtoolError, match="cannot read"):
            list(read_lines(bad))


def test_lines_that_repeat_a_marker_end_in_time(tmp_path: Path) -> None:
    log = tmp_path / "long.log"
    log.write_text("Capture cuda graph end. " * 1_000 + "Error: " * 3_000 + "CUDA out of memory. Tried to allocate\n")
    facts = read_facts(read_lines(str(log)), "log")
    assert facts.refusal is not None


def test_the_arguments_of_vllm_before_0_9() -> None:
    facts = from_text(
        "args: Namespace(subparser='serve', model_tag='Qwen/Qwen3-8B', model='facebook/opt-125m', max_model_len=8192, "
        "tensor_parallel_size=2, quantization=None)\nAvailable KV cache memory: 9.00 GiB"
    )
    assert facts.model == "Qwen/Qwen3-8B"
    assert facts.flags["tensor_parallel_size"] == "2"


def test_a_pool_in_bytes_or_gib_at_the_end_of_a_start() -> None:
    assert [x.value for x in from_text("Current kv cache memory in use is 36.88 GiB.").of("kv_pool")] == [36.88 * GIB]
    assert [x.value for x in from_text("Current kv cache memory in use is 39207 bytes.").of("kv_pool")] == [39_207]
    assert [x.value for x in from_text("Available KV cache memory: 5368709120 bytes").of("kv_pool")] == [5 * GIB]


def test_pages_that_a_backend_changed_before_the_arguments_belong_to_the_start() -> None:
    facts = read("sglang_qwen3_8b_b200.log")
    assert facts.starts == 1
    assert facts.flags["page_size"] == "64"
    assert facts.flags["attention_backend"] == "trtllm_mha"
