"""Situations whose answer is the one that the numbers give, and the numbers are computed here from first principles.

Nothing of `kvtool.advise` computes an expected number: see `situations.py` for the model's and the card's data.
"""

from __future__ import annotations

from functools import cache

import pytest

from kvtool.advise.advise import advise
from kvtool.advise.situation import Situation
from kvtool.results import AdviseDecision
from tests.advise.situations import KV_BYTES, LAYERS, LINK, PCIE, RATE, prefill_s, situation, step_s

CACHE, PREFIX, DTYPE, PAGES, LAYOUT, SPLIT = (
    "Is a cache needed?",
    "A prefix cache?",
    "Which cache dtype?",
    "Which page size?",
    "How are the cards used?",
    "Disaggregate?",
)
DRAM, DISK = "Offload to dram?", "Offload to disk?"
FP8_STEP = 0.14 / 6.44  # what an fp8 cache costs a step: vLLM's blog, ITL without context 6.44 -> 6.58 ms on an H100


@cache
def answers(**asked: object) -> dict[str, AdviseDecision]:
    return {one.question: one for one in advise(situation(**asked)).decisions}


def value(decision: AdviseDecision) -> float:
    assert decision.value is not None
    return decision.value


def test_one_shot_scoring_needs_no_cache() -> None:
    found = answers(input_len=512, output_len=1)
    assert found[CACHE].answer == "no cache needed"
    assert value(found[CACHE]) == prefill_s(512) / prefill_s(512) == 1.0
    assert found[PREFIX].answer == "no"
    assert found[DTYPE].answer == "bf16"
    assert found[SPLIT].answer == "do not disaggregate"


def test_a_chat_needs_one() -> None:
    found = answers()
    without = prefill_s(4096) + sum(prefill_s(4096 + i) for i in range(1, 256))
    kept = prefill_s(4096) + sum(step_s(4096 + i) for i in range(1, 256))
    assert found[CACHE].answer == "yes"
    assert value(found[CACHE]) == pytest.approx(without / kept, rel=0.002)
    assert found[PAGES].answer == "64 tokens"  # 128 would lose 63.5 of 4,352
    assert value(found[PAGES]) == pytest.approx(31.5 / 4352)


def test_a_few_short_tokens_need_none_since_weights_take_as_long_to_read() -> None:
    found = answers(input_len=16, output_len=32)
    without = sum(prefill_s(16 + i) for i in range(32))
    kept = prefill_s(16) + sum(step_s(16 + i) for i in range(1, 32))
    assert found[CACHE].answer == "no cache needed"
    assert value(found[CACHE]) == pytest.approx(without / kept, rel=1e-6)
    assert without / kept < 1.05
    first = next(tokens for tokens in range(1, 1000) if prefill_s(tokens) >= 1.05 * step_s(tokens))
    assert f"from {first} tokens of context on" in found[CACHE].because


def test_ranking_needs_one_for_the_users_history_alone() -> None:
    found = answers(workload="ranking", input_len=800, output_len=1, num_prompts=50)
    hit = 592 * 49 // 50  # 3/4 of 800 in whole pages, which all items but the first find
    assert found[CACHE].answer == "for shared prefixes only"
    assert value(found[CACHE]) == pytest.approx(prefill_s(800) / prefill_s(800, hit), rel=1e-6)
    assert found[PREFIX].answer == "yes"
    assert value(found[PREFIX]) == pytest.approx(1 - prefill_s(800, hit) / prefill_s(800), rel=1e-6)


def test_prompts_that_share_nothing_need_no_prefix_cache() -> None:
    found = answers(concurrency=8)
    assert (found[PREFIX].answer, value(found[PREFIX])) == ("no", 0.0)
    assert (found[DRAM].answer, value(found[DRAM])) == ("do not offload", 0.0)


def test_a_system_prompt_needs_one() -> None:
    found = answers(workload="translation", input_len=2048, output_len=128)
    assert found[PREFIX].answer == "yes"
    assert value(found[PREFIX]) == pytest.approx(1 - prefill_s(2048, 1536) / prefill_s(2048), rel=1e-6)
    assert found[PAGES].answer == "16 tokens"
    assert value(found[PAGES]) == pytest.approx(7.5 / 512)


@pytest.mark.parametrize(
    ("context", "batch", "answer"), [(1024, 1, "bf16"), (65536, 4, "fp8")], ids=["short contexts", "long contexts"]
)
def test_the_dtype_follows_from_what_a_step_reads(context: int, batch: int, answer: str) -> None:
    found = answers(input_len=context, output_len=1024, concurrency=batch)[DTYPE]
    read = context + 512
    first, steps = prefill_s(context), 1023 / batch
    own = first + steps * step_s(read, batch)
    short = first + steps * (step_s(read, batch, kv_bytes=KV_BYTES // 2) + FP8_STEP * step_s(1, batch))
    assert found.answer == answer
    assert value(found) == pytest.approx(own / short, rel=0.001)
    assert (own / short >= 1.05) == (answer == "fp8")


def test_nothing_is_offloaded_where_all_fits() -> None:
    found = answers(workload="multi-turn")[DRAM]
    # 16 chats of prompts of 1,600, 2,432, 3,264 and 4,096 tokens behind a common 1,024: what the last prompt finds is
    # the one before it and its answer but for their last token, in whole pages.
    own = (3264 + 256 - 1) // 16 * 16 - 1024
    assert found.answer == "do not offload"
    assert value(found) == 1024 + 16 * own
    assert (found.threshold or 0) > value(found)


def test_a_disk_is_slower_than_computing_again_and_host_memory_is_not() -> None:
    """Llama-2-7B has a KV head for each query head: 512 KiB a token, four times those of Llama-3.1-8B."""
    asked = {"model": "llama-2-7b", "workload": "multi-turn", "num_prompts": 8000, "tiers": "dram=1TiB,disk=8TiB@7"}
    found = answers(**asked)
    layers, hidden, ffn = 32, 4096, 11008
    hit = (1024 + 1840 + 2672 + 3504) // 4  # whole pages that the four prompts of a chat find
    params = layers * (4 * hidden * hidden + 3 * hidden * ffn + 2 * hidden) + hidden
    flops = 2 * params * hit + 4 * hidden * layers * hit * (hit + 1) / 2
    break_even = -(-hit // 16) * 16 * 2 * layers * hidden * 2 / (flops / RATE) / 1e9
    assert found[DISK].answer == "do not offload: compute again"
    assert found[DRAM].answer == "yes"
    for tier, speed in ((DISK, 7e9), (DRAM, PCIE)):
        assert found[tier].threshold == pytest.approx(break_even, rel=0.001)
        assert value(found[tier]) == pytest.approx(speed / 1e9, rel=0.01)
    assert 7 < break_even < 64


def test_one_user_gets_all_cards_by_tensor_parallelism() -> None:
    found = answers(num_gpus=8)[LAYOUT]
    times = {tp: 1e3 * (prefill_s(4096, tp=tp) + 255 * step_s(4224, tp=tp)) for tp in (1, 2, 4, 8)}
    assert found.answer == "TP 8"
    assert value(found) == pytest.approx(times[8], rel=0.001) == pytest.approx(min(times.values()), rel=0.001)
    assert found.threshold == pytest.approx(times[4], rel=0.001)


def together(asked: Situation, tp: int, kv_bytes: int) -> float:
    """Requests a second of copies on `tp` cards each that prefill and decode: of the largest batch within the limit."""
    length, steps, read = lengths(asked)
    first, most = prefill_s(length, tp=tp), batches(asked, tp, asked.num_gpus // tp, kv_bytes)
    limit = asked.tpot_goal_s or float("inf")
    batch = max((b for b in most if step_s(read, b, tp, kv_bytes) + first * b / steps <= limit), default=0)
    return asked.num_gpus / tp / (first + steps * step_s(read, batch, tp, kv_bytes) / batch) if batch else 0.0


def apart(asked: Situation, kv_bytes: int) -> dict[str, float]:
    """Requests a second of every split of the cards into copies that prefill and copies that decode."""
    length, steps, read = lengths(asked)
    limit, found = asked.tpot_goal_s or float("inf"), {}
    for tp in (1, 2, 4):
        copies, first = asked.num_gpus // tp, prefill_s(length, tp=tp)
        sent = length * kv_bytes / tp / LINK
        hidden = max(sent - first * (1 - 1 / LAYERS), sent / LAYERS)
        for decode in range(1, copies):
            batch = max(b for b in batches(asked, tp, decode, kv_bytes) if step_s(read, b, tp, kv_bytes) <= limit)
            step = step_s(read, batch, tp, kv_bytes)
            round_trip = float("inf") if asked.users is None else asked.users / (first + hidden + steps * step)
            name = f"{copies - decode} prefill, {decode} decode" + (f" of TP {tp}" if tp > 1 else "")
            found[name] = min((copies - decode) / first, decode * batch / (steps * step), round_trip)
    return found


def lengths(asked: Situation) -> tuple[int, int, int]:
    """Tokens of the prompt, decode steps, and the context of the mean step."""
    traffic = asked.traffic
    return traffic.input_tokens, traffic.output_tokens - 1, traffic.input_tokens + (traffic.output_tokens + 1) // 2


def batches(asked: Situation, tp: int, copies: int, kv_bytes: int) -> range:
    """As many as are in flight and the memory holds, which `kvtool size` is tested for."""
    dtype = "auto" if kv_bytes == KV_BYTES else "fp8"
    held = asked.replica(tp=tp, kv_cache_dtype=dtype).holds(asked.traffic.longest_tokens)
    return range(1, 1 + (held if asked.users is None else min(held, -(-asked.users // copies))))


def test_many_users_get_replicas_and_no_disaggregation_without_a_limit() -> None:
    asked = situation(num_gpus=8, goal="throughput", concurrency=256, output_len=16)
    found = {one.question: one for one in advise(asked).decisions}
    assert found[DTYPE].answer == "bf16"
    rates = {tp: together(asked, tp, KV_BYTES) for tp in (1, 2, 4, 8)}
    assert found[LAYOUT].answer == "8 replicas"
    assert value(found[LAYOUT]) == pytest.approx(16 * rates[1], rel=0.001) == pytest.approx(16 * max(rates.values()))
    assert found[LAYOUT].threshold == pytest.approx(16 * rates[2], rel=0.001)
    gain = max(apart(asked, KV_BYTES).values()) / rates[1]
    assert gain < 1
    assert found[SPLIT].answer == "do not disaggregate"
    assert value(found[SPLIT]) == pytest.approx(gain, rel=0.001)


def test_a_limit_of_tpot_asks_for_disaggregation() -> None:
    asked = situation(num_gpus=8, goal="throughput", input_len=32768, tpot_goal_s=0.020)
    found = {one.question: one for one in advise(asked).decisions}
    assert found[DTYPE].answer == "fp8"
    splits = apart(asked, KV_BYTES // 2)
    best = max(splits, key=lambda name: splits[name])
    gain = splits[best] / max(together(asked, tp, KV_BYTES // 2) for tp in (1, 2, 4, 8))
    assert gain >= 1.05
    assert found[SPLIT].answer == f"yes: {best}"
    assert value(found[SPLIT]) == pytest.approx(gain, rel=0.001)


def test_cards_without_a_known_link_get_replicas() -> None:
    found = answers(model="smollm2-135m", gpu="t4", num_gpus=2, goal="throughput", tiers="dram=1GiB@10")
    assert found[LAYOUT].answer == "2 replicas"
    assert (found[SPLIT].answer, found[SPLIT].value) == ("do not disaggregate", None)
    assert "no link between cards of T4-16GB is known" in found[SPLIT].because


def test_latents_that_tp_repeats_are_shared_out_by_dcp() -> None:
    """DeepSeek-V3: 61 layers of 512 + 64 elements, whole on each rank of TP; DCP 8 leaves an eighth."""
    asked = situation(model="deepseek-v3", gpu="h200", num_gpus=8, goal="throughput", input_len=8192, output_len=8192)
    found = {one.question: one for one in advise(asked).decisions}[LAYOUT]
    assert found.answer == "TP 8 with DCP 8"
    assert [option.name for option in found.options] == ["TP 8 with DCP 8", "TP 8"]
    token = 61 * (512 + 64) * 1  # fp8
    whole, shared = (asked.replica(tp=8, dcp=dcp, kv_cache_dtype="fp8") for dcp in (1, 8))
    assert whole.holds(16384) == whole.pool_bytes // (16384 * token)
    assert shared.holds(16384) == shared.pool_bytes // (2048 * token)
