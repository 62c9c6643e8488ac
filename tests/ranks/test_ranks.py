"""Ranks of a run: they say what one process says, hold and send what was predicted, and name the one that dies."""

from __future__ import annotations

import gc
import os
import signal
from contextlib import AbstractContextManager
from typing import Protocol

import pytest

from kvtool.bench.cases.rank_cell import RanksCell
from kvtool.catalog.model import Model
from kvtool.engine.engine import Engine
from kvtool.engine.ranks.lead import RankedModel
from kvtool.engine.ranks.replicas import Replicas
from kvtool.engine.ranks.shards import shard_of
from kvtool.engine.sequence import SamplingParams
from kvtool.machine.ranks.crew import Crew
from kvtool.machine.ranks.layout import RankLayout
from kvtool.machine.ranks.traffic import Asked, chosen_pass, replica_traffic, ring_of, step_traffic
from kvtool.report.bench.charts import bench_panels, chart
from kvtool.report.bench.ranks import ranks_findings, ranks_tables
from kvtool.results import BenchDocument, RanksCase
from kvtool.sizing.formats import parse_cache_format
from kvtool.sizing.layers import layer_specs
from kvtool.sizing.params import count_params
from kvtool.sizing.speed.exchange import Link
from kvtool.system.errors import DeviceError
from tests.ranks.conftest import CONFIG, NUM_PAGES, alone, prompts, run
from tests.ranks.models import MODELS

FP32 = 4


class Ranked(Protocol):
    def __call__(self, name: str, layout: RankLayout) -> AbstractContextManager[RankedModel]: ...


LAYOUTS = (
    ("smollm2", RankLayout(tp=3)),  # 9 heads and 3 KV heads
    ("gqa", RankLayout(tp=2)),
    ("gqa", RankLayout(tp=4, replicated_head=True)),  # each KV head on two ranks
    ("gqa", RankLayout(tp=4, dcp=2)),
    ("gqa", RankLayout(tp=4, dcp=2, ring="pass-kv")),
    ("gqa", RankLayout(cp=2, ring="pass-kv")),
    ("gqa", RankLayout(cp=3, ring="pass-q")),
    ("gqa", RankLayout(cp=4)),
    ("gqa", RankLayout(cp=2, ring="measured")),
    ("gqa", RankLayout(tp=2, cp=2)),
    ("mla", RankLayout(tp=2)),
    ("mla", RankLayout(tp=4, dcp=2)),
    ("mla", RankLayout(tp=2, dcp=2, ring="pass-kv")),
    ("mla", RankLayout(cp=4)),
    ("sinks", RankLayout(tp=2, cp=2)),
)


def test_ranks_say_hold_and_send_what_they_should(ranked: Ranked) -> None:
    """Every layout in one test: one group of processes serves them all."""
    for name, layout in LAYOUTS:
        with ranked(name, layout) as loaded:
            where = f"{name} on {layout}, {layout.ring}"
            assert run(loaded, prompts(MODELS[name])) == alone(name), where
            check_bytes(MODELS[name], layout, loaded)
            if name != "sinks":  # of gpt-oss count_params counts a bias beside each norm, which has none
                held = [facts.weights_bytes for facts in loaded.facts()]
                assert held == [weights_bytes(MODELS[name], layout, rank) for rank in range(layout.ranks)], where


def test_replicas_of_the_attention_share_the_rest(ranked: Ranked) -> None:
    """DP attention of a latent cache and its experts: each of two ranks keeps the latents of every second request."""
    model, params = MODELS["mla"], SamplingParams(max_tokens=6)
    with ranked("mla", RankLayout(tp=2, dp=2)) as loaded:
        replicas = Replicas(loaded, num_pages=NUM_PAGES, config=loaded.config)
        loaded.begin_anew()
        sequences = [replicas.add(prompt, params) for prompt in prompts(model)]
        replicas.step()
        sent = sum(facts.payload_bytes for facts in loaded.facts())
        for _ in replicas.run_until_idle():
            assert [engine.cache.check() for engine in replicas.engines] == [None, None]
        held = loaded.facts()
    assert [sequence.output_ids for sequence in sequences] == alone("mla")
    # The first step: 33 + 54 tokens of the first and third prompt; 1, and 299 of 350 of the others.
    assert sent == replica_traffic(model, [87, 300], [2, 1], FP32).total_bytes
    specs = layer_specs(model, parse_cache_format("fp32", "fp32"))
    assert [facts.pool_bytes for facts in held] == [
        NUM_PAGES * sum(spec.page_bytes(CONFIG.block_size) for spec in specs)
    ] * 2
    assert [facts.weights_bytes for facts in held] == [
        weights_bytes(model, RankLayout(tp=2, dp=2), rank) for rank in range(2)
    ]


def check_bytes(model: Model, layout: RankLayout, loaded: RankedModel) -> None:
    """The kernel counts at most 2 % more than what is to be sent, in one run of three: where a machine is loaded it
    sends some of it again."""
    over = []
    for _ in range(3):
        sent, predicted = sent_bytes(model, layout, loaded)
        assert sent >= predicted
        over.append(sent / predicted)
        if over[-1] <= 1.02:
            return
    raise AssertionError(f"{layout}, {layout.ring}: {over} times what was to be sent")


def sent_bytes(model: Model, layout: RankLayout, loaded: RankedModel) -> tuple[int, float]:
    """By the kernel's count and by the formula, of a prompt in two steps. Pages are those of the shape, and the payload
    is the formula's exactly."""
    prompt, most = prompts(model)[3], CONFIG.max_num_batched_tokens
    gc.collect()  # the pool of the run before
    engine = Engine(loaded, num_pages=NUM_PAGES)
    before, told = [rank.socket_bytes or 0 for rank in loaded.facts()], loaded.told_bytes
    loaded.begin_anew()
    engine.add(prompt, SamplingParams(max_tokens=1))
    for _ in engine.run_until_idle():
        pass
    held = loaded.facts()
    specs = layer_specs(model, parse_cache_format("fp32", "fp32"), tp=layout.tp)
    for facts in held:
        assert facts.pool_bytes == NUM_PAGES * sum(spec.page_bytes(CONFIG.block_size) for spec in specs)
    steps = [[Asked(start=0, stop=most, is_sampled=False)], [Asked(start=most, stop=len(prompt))]]
    link = loaded.seat.tokens.link  # of the run before, where the ring is chosen by it
    formula = sum(step_traffic(model, layout, step, FP32, link).total_bytes for step in steps)
    assert sum(facts.payload_bytes for facts in held) == pytest.approx(formula, rel=1e-12)
    sent = sum((after.socket_bytes or 0) - start for after, start in zip(held, before, strict=True))
    return sent, formula + loaded.told_bytes - told


def weights_bytes(model: Model, layout: RankLayout, rank: int) -> int:
    """The parameters of the model that the rank runs, counted from its shape. Random weights have no routers."""
    params = count_params(shard_of(model, layout, layout.tp_index(rank)))
    assert params is not None
    routers = 0 if model.moe is None else params.sparse_layers * model.moe.num_experts * model.hidden_size
    return FP32 * (params.total - routers)


def test_a_case_tells_time_and_bytes_apart(ranked: Ranked) -> None:
    """Two prompts of 100 tokens, prefilled in one step, on two ranks in both ways round, and a document of them."""
    cases: list[RanksCase] = []
    tokens: list[list[list[int]]] = []
    for ring in ("pass-kv", "pass-q"):
        layout = RankLayout(cp=2, ring=ring)
        with ranked("gqa", layout) as loaded:
            cell = {"loaded": loaded, "layout": layout, "output_len": 4, "input_len": 100, "batch_size": 2}
            more = {
                "num_iters": 2,
                "seed": 0,
                "block_size": CONFIG.block_size,
                "expected": tokens[0] if tokens else None,
            }
            case, said = RanksCell(**cell, **more).measure()
            cases.append(case)
            tokens.append(said)
    assert cases[1].check.outputs_equal
    for case, ring in zip(cases, ("pass-kv", "pass-q"), strict=True):
        asked = [Asked(start=0, stop=100)] * 2
        traffic = step_traffic(MODELS["gqa"], RankLayout(cp=2, ring=ring), asked, FP32)
        prefill = case.ranks.prefill
        assert prefill.goes_round == ring
        assert prefill.sent_bytes == prefill.formula_bytes == traffic.total_bytes
        assert prefill.wall_ms == pytest.approx(prefill.compute_ms + prefill.exposed_ms)
        assert prefill.hidden_ms == max(0.0, prefill.alone_ms - prefill.exposed_ms)
        assert case.memory.kv_predicted_bytes == case.memory.kv_allocated_bytes
        assert [use.kv_predicted_bytes for use in case.ranks.ranks] == [case.memory.kv_pool_bytes] * 2
    document = BenchDocument(environment={}, definitions={}, assumptions=[], cases=cases)
    assert [table.title for table in ranks_tables(document)] == ["Time by layout", "Bytes by layout"]
    exact, ways = ranks_findings(document)
    assert exact.startswith("Every rank holds the bytes that were predicted, and prefills send at most")
    # 200 tokens' K and V of 2 heads x 16 in 2 layers of fp32, half of them each way; queries of 8 heads, answers of 17.
    assert "pass-kv is fewer bytes (102.02 KiB by pass-kv" in ways
    assert len([panel for panel in bench_panels(document) if panel.draw]) == 3
    assert chart(bench_panels(document)).axes


def test_a_case_of_replicas_sends_what_the_formula_says(ranked: Ranked) -> None:
    """Two prompts of 100 tokens, one on each of two replicas of MLA; a decode step of each is one token."""
    layout, model = RankLayout(tp=2, dp=2), MODELS["mla"]
    with ranked("mla", layout) as loaded:
        shape = {"input_len": 100, "output_len": 4, "batch_size": 2, "block_size": CONFIG.block_size}
        cell = RanksCell(loaded=loaded, layout=layout, num_iters=1, seed=0, expected=None, **shape)
        case, _ = cell.measure()
    prefill, decode = case.ranks.prefill, case.ranks.decode
    assert decode is not None
    assert prefill.sent_bytes == prefill.formula_bytes == replica_traffic(model, [100, 100], [1, 1], FP32).total_bytes
    assert decode.sent_bytes == decode.formula_bytes == replica_traffic(model, [1, 1], [1, 1], FP32).total_bytes
    assert case.memory.kv_predicted_bytes == case.memory.kv_allocated_bytes
    assert (case.ranks.dp, case.inputs["dp"], prefill.goes_round) == (2, 2, None)


def test_what_goes_round_is_what_is_fewer_bytes() -> None:
    """Llama 3 405B (128 heads, 8 KV heads) passes keys for a prompt without a hit, queries for a decode: Meta's
    threshold is 12.5 % of new tokens for queries alone (arXiv 2411.01783), less with the answers that come back."""
    layout = RankLayout(cp=4)
    shape = ring_of(MODELS["gqa"], MODELS["gqa"].layers[0], layout, FP32)
    assert chosen_pass(shape, layout, [Asked(start=0, stop=4096)]) == "pass-kv"
    assert chosen_pass(shape, layout, [Asked(start=4095, stop=4096)]) == "pass-q"


@pytest.mark.parametrize(
    ("alpha_s", "context", "goes_round"), [(0.0, 64, "pass-q"), (1e-3, 64, "pass-kv"), (1e-3, 1 << 16, "pass-q")]
)
def test_what_goes_round_is_what_a_measured_link_sends_sooner(alpha_s: float, context: int, goes_round: str) -> None:
    """A decode over 1 GB/s: 16 keys of 256 B from each of 4 ranks are 3 steps, a query and its answers 4 of fewer
    bytes; 16,384 keys are 4 MiB, thrice.
    """
    layout = RankLayout(cp=4, ring="measured")
    shape = ring_of(MODELS["gqa"], MODELS["gqa"].layers[0], layout, FP32)
    link = Link(bytes_per_s=1e9, alpha_s=alpha_s)
    assert chosen_pass(shape, layout, [Asked(start=context - 1, stop=context)], link) == goes_round


def test_a_rank_that_is_killed_is_named(ranked: Ranked, crew: Crew) -> None:
    """The last test: nothing runs on the crew afterwards."""
    with ranked("gqa", RankLayout(tp=4)) as loaded:
        engine = Engine(loaded, num_pages=NUM_PAGES)
        engine.add(prompts(MODELS["gqa"])[0], SamplingParams(max_tokens=400))
        engine.step()
        os.kill(crew.pids[1], signal.SIGKILL)
        with pytest.raises(DeviceError, match=r"rank 2 of 4 died \(signal SIGKILL\): the run is over"):
            for _ in engine.run_until_idle():
                pass
