"""A cluster's closed form to the fraction, and sessions that keep the published relations between its modes.

DualPath is arXiv 2602.21548.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from kvtool.catalog.gpus import find_gpu
from kvtool.catalog.resolve import resolve_model
from kvtool.replay.cluster.cluster import ClusterOptions, agents_at_goal, bound_words, node_speeds, replay_cluster
from kvtool.replay.cluster.layout import (
    DecodeNode,
    Layout,
    PrefillNode,
    decode_node,
    kv_is_smaller,
    pass_kv_bytes,
    pass_q_bytes,
    prefill_node,
)
from kvtool.replay.cluster.links import balanced_range, limits, link_loads
from kvtool.replay.cluster.options import Cluster, parse_cluster, parse_clusters, parse_goal
from kvtool.replay.cluster.schedule import Node, Router, choose_decode, choose_prefill, reading_side
from kvtool.replay.cluster.simulate import Simulation
from kvtool.replay.cluster.turns import Session, Turn, sessions_of
from kvtool.results import ReplayCluster
from kvtool.system.errors import KvtoolError
from kvtool.workloads.making.make import make_trace
from kvtool.workloads.making.options import Making
from kvtool.workloads.traces import open_trace
from kvtool.workloads.traces.write import write_trace

GPU, MODEL = find_gpu("h100"), resolve_model("llama-3.1-8b")


def test_the_range_of_the_published_cluster() -> None:
    """Eq. 9 with g = 8, s = 1, M = 500 and B = 50 GB/s."""
    assert balanced_range(Cluster(prefill=2, decode=4)) == (Fraction(1, 7), Fraction(7, 2))


@pytest.mark.parametrize(("prefill", "decode"), [(1, 1), (2, 4), (1, 7), (7, 2), (48, 96)])
def test_every_links_load(prefill: int, decode: int) -> None:
    """Section 4.3, in units of Bs of a node; r is D/P on a prefill node, P/D on a decode node."""
    cluster = Cluster(prefill=prefill, decode=decode)
    wide, narrow = Fraction(decode, prefill), Fraction(prefill, decode)
    found = {(one.node, one.link): one.gbps / cluster.storage_gbps for one in link_loads(cluster)}
    assert found == {
        ("prefill", "snic"): 1, ("prefill", "dram"): 2, ("prefill", "cnic read"): 2,
        ("prefill", "cnic write"): 1 + wide,
        ("decode", "snic"): 1, ("decode", "dram"): 3 + 2 * narrow, ("decode", "cnic read"): 2 + narrow,
        ("decode", "cnic write"): 1 + 2 * narrow,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "bound"),
    [((1, 7), "storage"), ((1, 8), "prefill cnic write"), ((7, 2), "storage"), ((4, 1), "decode cnic write")],
)
def test_out_of_the_range_another_link_is_full_first(nodes: tuple[int, int], bound: str) -> None:
    cluster = Cluster(prefill=nodes[0], decode=nodes[1])
    assert bound_words(cluster) == bound
    low, high = balanced_range(cluster)
    assert high is not None
    assert (low <= Fraction(*nodes) <= high) == (bound == "storage")


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cluster") / "agents.jsonl"
    write_trace(path, make_trace(Making(kind="agents", num_sessions=8, max_len=4096)))
    return path


def played(agents: Path, prefill: int, decode: int) -> ReplayCluster:
    cluster = Cluster(prefill=prefill, decode=decode, storage_gbps=Fraction(1))
    return replay_cluster(open_trace(agents), ClusterOptions(cluster=cluster), MODEL, GPU)


def test_the_modes_relate_as_published(agents: Path) -> None:
    """Figure 10: Basic 1P1D ~ 1P2D, DualPath 1P1D ~ Basic 2P1D, DualPath 2P1D ~ 1P2D; the gain stays below (P+D)/P."""
    spans = {}
    for prefill, decode in ((1, 1), (1, 2), (2, 1)):
        modes = {mode.mode: mode for mode in played(agents, prefill, decode).modes}
        for name, mode in modes.items():
            spans[name, prefill, decode] = mode.makespan_s
            assert all(link.utilisation <= 1 + 1e-9 for link in mode.links)
        gain = modes["basic"].makespan_s / modes["dualpath"].makespan_s
        assert 1.2 < gain <= (prefill + decode) / prefill
        assert modes["oracle"].makespan_s < modes["dualpath"].makespan_s
        assert (modes["dualpath"].storage_max_over_mean or 9) < (modes["basic"].storage_max_over_mean or 0)
    assert spans["basic", 1, 1] == pytest.approx(spans["basic", 1, 2], rel=0.05)
    assert spans["dualpath", 1, 1] == pytest.approx(spans["basic", 2, 1], rel=0.1)
    assert spans["dualpath", 2, 1] == pytest.approx(spans["dualpath", 1, 2], rel=0.1)


def test_storage_without_end_is_the_oracle(agents: Path) -> None:
    speed = Fraction(10**5)
    fast = Cluster(prefill=1, decode=1, nic_gbps=speed, storage_gbps=speed, dram_gbps=speed)
    found = replay_cluster(open_trace(agents), ClusterOptions(cluster=fast), MODEL, GPU)
    modes = {one.mode: one for one in found.modes}
    assert modes["dualpath"].makespan_s == pytest.approx(modes["oracle"].makespan_s, rel=0.02)


def test_more_agents_keep_the_goal_with_the_second_way(agents: Path) -> None:
    cluster, sessions = Cluster(prefill=1, decode=1, storage_gbps=Fraction(1)), sessions_of(open_trace(agents))[:4]
    speeds = node_speeds(MODEL, GPU, cluster)
    rates = [
        agents_at_goal(ClusterOptions(cluster=cluster, mode=mode, ttft_goal_s=0.5), speeds, sessions, upper=2.0)
        for mode in ("basic", "dualpath")
    ]
    assert 0 < rates[0] < rates[1]


def test_a_turn_finds_the_answer_before_it_in_storage(tmp_path: Path) -> None:
    made = make_trace(Making(kind="agents", num_sessions=2, max_len=4096, block_size=64))
    write_trace(tmp_path / "a.jsonl", made)
    sessions = sessions_of(open_trace(tmp_path / "a.jsonl"))
    for session in sessions:
        before = 0
        for turn in session.turns:
            assert turn.cached_tokens == before // 64 * 64
            before = turn.input_tokens + turn.output_tokens


def test_who_is_chosen() -> None:
    """Section 5: short read queue first, then the fewest tokens; overloaded nodes never; a decode node near the mean
    with the fewest requests; the side with the shorter read queue.
    """
    nodes = [Node(0, tokens=10, read_tokens=9), Node(1, tokens=50, read_tokens=1), Node(2, tokens=99)]
    rule = {"short_queue_tokens": 5, "most_tokens": 60}
    assert choose_prefill(nodes, **rule) is nodes[1]
    assert choose_prefill(nodes[:1], **rule) is nodes[0]
    assert choose_prefill(nodes[2:], **rule) is None
    decodes = [Node(3, requests=9, tokens=10), Node(4, requests=2, tokens=20), Node(5, requests=1, tokens=60)]
    assert choose_decode(decodes, 10) is decodes[1]  # 1.05 x (10 + 90) / 3 = 35: the last one would pass it
    assert choose_decode(decodes, 90) is decodes[0]
    assert [reading_side(mode, nodes[0], nodes[1]) for mode in ("basic", "dualpath")] == ["prefill", "decode"]


def test_the_rings_break_even_of_llama_405b() -> None:
    """Context Parallelism for Scalable Million-Token Inference (arXiv 2411.01783): with 8 KV heads of 128, K and V are
    the smaller from one new token in eight on, 2 x 8 / 128 = 0.125. A rank's K and V, of 2 x 8 x 128 elements a token,
    and its queries, of 128 x 128, are then the same bytes.
    """
    assert kv_is_smaller(1000, 7000, 8, 128)
    assert not kv_is_smaller(999, 7001, 8, 128)
    assert pass_kv_bytes(1000, 7000, 2 * 8 * 128 * 2, 4) == pass_q_bytes(1000, 128 * 128 * 2, 4)


def node(**degrees: int) -> tuple[PrefillNode, DecodeNode]:
    layout = Layout(**degrees)
    return prefill_node(MODEL, GPU, layout, 131_072, None), decode_node(MODEL, GPU, layout, "auto")


def test_what_a_layout_costs() -> None:
    """Llama 3.1 8B: 32 layers of 4,096, 8 KV heads, 131,072 bytes a token; H100: 450 GB/s links, 3,350 GB/s memory."""
    tensor, decode = node()
    sent = 2 * 32 * (2 * 7 / 8) * 1000 * 4096 * 2  # two all-reduces a layer, of bf16 activations
    assert tensor.collective_s(1000) == pytest.approx(2 * 32 * 10e-6 + sent / 450e9)  # alpha-beta, 10 us each
    assert decode.collective_s(0) == pytest.approx(2 * 32 * 10e-6)
    assert decode.rank_bytes == 131_072 / 8
    replicas, attention = node(dp=8)
    assert replicas.lanes == 8
    assert replicas.collective_s(1000) == pytest.approx(32 * 10e-6 + sent / 2 / 450e9)  # none behind attention
    assert attention.rank_bytes == 131_072  # whole, of an eighth of the requests
    assert attention.step_s(8, 8000) > decode.step_s(8, 8000)  # as each replica reads all weights of the attention
    ring, _ = node(cp=4)
    assert ring.ring_s(32_768, 0) == 0.0  # hidden behind the attention of its steps
    exposed = ring.ring_s(16, 131_072)  # few queries are sent in place of much K and V
    assert 32 * 10e-6 < exposed < 32 * 3 * (10e-6 + pass_kv_bytes(16, 131_072, 131_072 / 32 / 2, 4) / 450e9)
    assert ring.prefill_s(8192, 0) < tensor.prefill_s(8192, 0)  # a rank reduces a quarter of the tokens
    with pytest.raises(KvtoolError, match="does not divide the 8 GPUs"):
        Layout(cp=3)


def test_dcp_shares_out_what_tp_would_copy() -> None:
    """DeepSeek-V3's latent is whole on each of 8 ranks: 61 x 576 elements of bf16; four of them share its tokens."""
    model = resolve_model("deepseek-v3")
    whole, shared = (decode_node(model, GPU, Layout(dcp=dcp), "bf16") for dcp in (1, 4))
    assert whole.rank_bytes == 61 * 576 * 2 == 4 * shared.rank_bytes
    assert shared.collective_s(64) > whole.collective_s(64)
    assert shared.step_s(64, 64 * 100_000) < whole.step_s(64, 64 * 100_000)


def test_a_faster_card_prefills_faster_and_the_others_decode_as_before(agents: Path) -> None:
    text = "prefill=1x{},decode=1xh200,storage=10"
    slow, fast = (
        replay_cluster(open_trace(agents), ClusterOptions(cluster=parse_cluster(text.format(card))), MODEL, None)
        for card in ("h100-pcie", "h200")
    )
    assert (slow.prefill_gpu, slow.decode_gpu) == ("H100-PCIe-80GB", fast.decode_gpu)
    assert slow.modes[-1].ttft_ms.mean > fast.modes[-1].ttft_ms.mean
    with pytest.raises(KvtoolError, match="names no card"):
        replay_cluster(open_trace(agents), ClusterOptions(cluster=Cluster(prefill=1, decode=1)), MODEL, None)


def test_the_best_split_is_the_best_of_all(agents: Path) -> None:
    splits = tuple(parse_clusters("total=32,storage=1"))
    assert [(one.prefill, one.decode) for one in splits] == [(1, 3), (2, 2), (3, 1)]
    found = replay_cluster(
        open_trace(agents), ClusterOptions(cluster=splits[0], splits=splits, mode="basic"), MODEL, GPU
    )
    alone = [
        replay_cluster(open_trace(agents), ClusterOptions(cluster=one, mode="basic"), MODEL, GPU).agents_per_s
        for one in splits
    ]
    assert [split.agents_per_s for split in found.splits] == alone
    assert (found.prefill, found.agents_per_s) == (3, max(alone))  # Basic reads on the prefill side alone
    assert parse_clusters("total=16,gpus=8")[0].decode == 1
    wrong = (
        ("total=20", "is not two nodes"),
        ("total=48,prefill=2", "leave prefill out"),
        ("alpha=-1,total=16", "alpha"),
    )
    for text, said in wrong:
        with pytest.raises(KvtoolError, match=said):
            parse_clusters(text)


def test_the_models_own_traffic_goes_first() -> None:
    """A fifth of the NICs is gone before the cache's bytes, all of them but a hundredth at most."""
    assert limits(parse_cluster("prefill=1,decode=1,reserved=0.2"))["cnic read"] == 320
    assert limits(parse_cluster("prefill=1,decode=1,reserved=1"))["cnic read"] == 4


def test_routes_to_prefill_nodes() -> None:
    """Node 1 has the session's prompt but is busy, node 2 is overloaded, node 0 idle."""

    def chosen(routing: str, turns: int) -> list[int]:
        nodes = [Node(0), Node(1, tokens=50, room_tokens=100), Node(2, tokens=99)]
        nodes[1].hold(7, 40)
        router = Router(routing, nodes, short_queue_tokens=10, most_tokens=60)
        found = [router.choose(7) for _ in range(turns)]
        return [node.index for node in found if node is not None]

    assert chosen("round-robin", 4) == [0, 1, 0, 0]  # in the place of the overloaded one comes the next
    assert chosen("least-loaded", 2) == chosen("session-sticky", 2) == chosen("dualpath", 2) == [0, 0]
    assert chosen("cache-aware", 2) == [1, 1]


def test_a_node_keeps_the_last_prompts_of_its_sessions() -> None:
    node = Node(0, room_tokens=100)
    for session, tokens in ((1, 40), (2, 40), (1, 50), (3, 30)):
        node.hold(session, tokens)
    assert dict(node.held) == {1: 50, 3: 30}
    node.hold(4, 101)
    assert not node.held


def test_what_a_node_has_is_not_read_again(agents: Path) -> None:
    """With room for all prompts and sessions that stay, storage gives each token once to a node, and less than half of
    what it gives where nodes keep nothing; going round loses most of that.
    """
    read: dict[tuple[str, str], float] = {}
    for local in ("0", "1TiB"):
        cluster = parse_cluster(f"prefill=4,decode=1,storage=1,local={local}")
        for routing in ("session-sticky", "cache-aware", "round-robin"):
            options = ClusterOptions(cluster=cluster, mode="basic", routing=routing)
            found = replay_cluster(open_trace(agents), options, MODEL, GPU)
            (basic,) = [mode for mode in found.modes if mode.mode == "basic"]
            read[local, routing] = basic.makespan_s * sum(one.utilisation for one in basic.links if "snic" in one.link)
    assert read["1TiB", "session-sticky"] < 0.5 * read["0", "session-sticky"]
    assert read["1TiB", "cache-aware"] < 0.5 * read["0", "cache-aware"]
    assert read["1TiB", "session-sticky"] < read["1TiB", "round-robin"] < read["0", "round-robin"]


def test_requests_wait_for_memory_of_the_nodes_that_decode(agents: Path) -> None:
    """Two that do not fit together, where bytes take no time: the second prompt is computed while the first request
    decodes, and decodes behind it. What it waited stands between its 101 tokens. Room for all is as no limit.
    """
    cluster = parse_cluster("prefill=1,decode=1,pool=2k")
    speeds = node_speeds(MODEL, GPU, cluster)
    sessions = [Session(0.0, (Turn(1000, 101, 0, 0.0),)) for _ in range(2)]
    played = Simulation(cluster, speeds, "oracle").play(sessions)
    prefill_s, step_s = speeds.prefill.prefill_s(1000, 0), speeds.decode.step_s(1, 1000)
    assert played.ttft_s == pytest.approx([prefill_s, 2 * prefill_s])
    assert played.ended_s == pytest.approx(prefill_s + 200 * step_s)
    assert played.tpot_s == pytest.approx([step_s, step_s + (100 * step_s - prefill_s) / 100])
    roomy = [
        replay_cluster(
            open_trace(agents), ClusterOptions(cluster=parse_cluster(f"prefill=1,decode=2{pool}")), MODEL, GPU
        )
        for pool in ("", ",pool=1m")
    ]
    assert roomy[0].modes == roomy[1].modes


def test_what_is_asked_of_a_cluster() -> None:
    assert parse_cluster("prefill=1, decode=2,nic=12.5").nic_gbps == Fraction(25, 2)
    assert parse_goal("ttft:4000,tpot:50") == {"ttft": 4.0, "tpot": 0.05}
    for text, said in (
        ("prefill=1", "has no decode nodes"), ("prefil=1,decode=1", "did you mean prefill"),
        ("prefill=0,decode=1", "must be from 1"), ("prefill=a,decode=1", "is no number"),
        ("prefill=1,decode=1,pool=0", "pool '0' must be a whole"),
        ("prefill=1,decode=1,nic=0", "must be above 0"), ("prefill=1,prefill=2,decode=1", "twice"),
    ):  # fmt: skip
        with pytest.raises(KvtoolError, match=said):
            parse_cluster(text)
    with pytest.raises(KvtoolError, match="is no goal"):
        parse_goal("e2e:5")
