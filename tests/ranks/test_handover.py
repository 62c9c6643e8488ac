"""Pages handed over: the same tokens as one process, whole heads whatever the layouts, and nothing that is not due."""

from __future__ import annotations

import os
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kvtool.bench.cases.disaggregate import DisaggregatePart, Ways
from kvtool.engine.handover.fit import Transfer, fitted
from kvtool.engine.handover.fleet import Fleet, start_fleet
from kvtool.engine.handover.frames import HEADER, Frame, Kind, greet, read_frame
from kvtool.engine.handover.messages import Ask, Served
from kvtool.engine.handover.options import Disaggregation, parse_disaggregation
from kvtool.engine.handover.staging import Heads, export_layer, import_layer, plan, planned_bytes, staged
from kvtool.engine.handover.summary import handover_of
from kvtool.engine.handover.wire import Part, Receiver, Sender
from kvtool.engine.sequence import SamplingParams
from kvtool.kernels.pages import Pages
from kvtool.report.bench.disaggregate import disaggregate_tables
from kvtool.results import BenchDocument
from kvtool.sizing.formats import parse_cache_format
from kvtool.sizing.specs import FullSpec
from kvtool.system.errors import DeviceError, KvtoolError
from tests.ranks.conftest import CONFIG, MAX_POSITIONS, NUM_PAGES, alone, prompts
from tests.ranks.models import MODELS

TOKEN = b"0123456789abcdef"


PARAMS = SamplingParams(max_tokens=6)


def asks(name: str) -> list[Ask]:
    """The prompts of the model, all at once."""
    return [Ask(request=i, prompt=p, params=PARAMS, arrival_s=0.0) for i, p in enumerate(prompts(MODELS[name]))]


@contextmanager
def fleet_of(name: str, asked: Disaggregation) -> Iterator[Fleet]:
    fleet = start_fleet(MODELS[name], CONFIG, asked, max_positions=MAX_POSITIONS, num_pages=NUM_PAGES)
    try:
        yield fleet
    finally:
        fleet.close()


def test_a_hand_over_changes_no_token_and_a_dead_engine_is_named() -> None:
    """Layer by layer over TCP; the later prompts come when pages of the first are where they are decoded."""
    apart, first = Disaggregation(transfer="tcp", by="layer"), asks("gqa")
    with fleet_of("gqa", apart) as fleet:
        served = fleet.run(first[:2]) + fleet.run(first[2:])
        assert [one.tokens for one in served] == alone("gqa")
        told = handover_of(served, apart)
        assert told.pages_spared == 24 // CONFIG.block_size  # of the third prompt, which begins like the first
        assert told.pages_sent == 9 + 1 + 14 - 6 + 88  # ceil(33 / 4), ceil(1 / 4), ceil(54 / 4), ceil(350 / 4)
        assert told.bytes == told.pages_sent * 4 * 2 * 2 * 2 * 16 * 4  # tokens, layers, K and V, heads, elements, bytes
        assert told.descriptors == 4 * 2  # a run of bytes a layer
        check_case(apart, served, fleet)
        os.kill(fleet.members[1].process.pid, signal.SIGKILL)
        with pytest.raises(DeviceError, match=r"decode engine 0 died \(signal SIGKILL\): the run is over"):
            fleet.run(first)


def check_case(apart: Disaggregation, served: list[Served], fleet: Fleet) -> None:
    """A bench document of what was served tells it."""
    part = DisaggregatePart(disaggregation=apart, goodput_ms={"ttft": 1e9})
    more = {"num_iters": 1, "seed": 0, "dtype": "fp32", "tokens": {256: [alone("gqa")]}}
    ways = Ways(model=MODELS["gqa"], config=CONFIG, part=part, **more)
    case = ways.case(apart, 256, [served], fleet.pool_bytes, 2 * NUM_PAGES)
    assert case.check.outputs_equal
    assert case.memory.kv_predicted_bytes == case.memory.kv_allocated_bytes
    assert case.disaggregate.goodput_ratio == 1.0
    document = BenchDocument(environment={}, definitions={}, assumptions=[], cases=[case])
    serving, handed = disaggregate_tables(document)
    assert serving.rows[0][0] == "prefill 1, decode 1"
    assert handed.rows[0][:4] == ("tcp, by layer", "256", "106", "6")


def test_latents_of_two_ranks_are_handed_to_one() -> None:
    """Whole, through shared memory."""
    with fleet_of("mla", Disaggregation(prefill_tp=2)) as fleet:
        assert [one.tokens for one in fleet.run(asks("mla"))] == alone("mla")


def test_pages_are_shared_out_anew_between_layouts(tmp_path: Path) -> None:
    """4 KV heads on two ranks go to four ranks, and on eight, where each head has two copies."""
    spec = FullSpec(kv_heads=4, k_head_dim=8, v_head_dim=4, cache_format=parse_cache_format("fp32", "fp32"))
    pieces = plan((spec,), 3, 2)
    memory, ids = staged(tmp_path / "pages", planned_bytes(pieces)), torch.tensor([4, 1, 5])
    whole = Pages(torch.randn(6, 2, 4, 8), torch.randn(6, 2, 4, 4))

    def of(heads: range) -> Pages:
        return whole.map(lambda tensor: tensor[:, :, heads.start : heads.stop].clone())

    for heads in (range(2), range(2, 4)):
        export_layer(of(heads), ids, pieces[0], memory, Heads(heads))
    export_layer(of(range(1)).map(torch.zeros_like), ids, pieces[0], memory, Heads(range(1), is_copy=True))
    for heads in [range(head, head + 1) for head in range(4)] * 2:
        empty = of(heads).map(torch.zeros_like)
        import_layer(empty, ids, pieces[0], memory, Heads(heads))
        for got, want in zip(empty.tensors, of(heads).tensors, strict=True):
            assert torch.equal(got[ids], want[ids])
            assert not got[[0, 2, 3]].any()


def test_a_receiver_takes_what_is_due_and_nothing_else() -> None:
    receiver = Receiver("127.0.0.1", TOKEN)
    memory = torch.zeros(8, dtype=torch.uint8)
    receiver.expect(7, memory)
    for token, frame in (
        (b"x" * 16, Frame(Kind.PART, 7, 0, 8)),
        (TOKEN, Frame(Kind.PART, 7, 4, 8)),  # beyond what was staged
        (TOKEN, Frame(Kind.PART, 9, 0, 8)),  # of nobody
    ):
        with socket.create_connection(receiver.address) as connection:
            greet(connection, token)
            connection.sendall(frame.encoded() + b"\1" * 8)
            assert closed(connection)
    assert not memory.any()
    assert receiver.arrived() == []
    sender = Sender(TOKEN)
    sender.send(Part(receiver.address, 7, torch.arange(8, dtype=torch.uint8), 2, 4))
    sender.send(Part(receiver.address, 7))
    request, _ = receiver.whole.get(timeout=10)
    sender.close()
    assert request == 7
    assert memory.tolist() == [0, 0, 2, 3, 4, 5, 0, 0]


def closed(connection: socket.socket) -> bool:
    """Whether the other side hangs up."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_a_frame_of_another_kind_is_refused() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(struct.pack(HEADER.format, b"HTTP", 1, 1, 0, 0, 0))
        with pytest.raises(DeviceError, match=r"HTTP.*no frame of version 1"):
            read_frame(ours)


def test_the_fit_finds_what_transfers_were_made_of() -> None:
    made = [Transfer(n, size, 20e-6 * n + size / 5e9, 0.0) for n in (1, 8, 64) for size in (10**5, 10**7)]
    fit = fitted(made)
    assert fit.alpha_s == pytest.approx(20e-6)
    assert fit.bytes_per_s == pytest.approx(5e9)
    assert fitted([replace(made[0], seconds=1.0)]).alpha_s is None


def test_a_wrong_spec_is_named() -> None:
    assert parse_disaggregation("prefill=2,decode=1,transfer=tcp") == Disaggregation(prefill=2, transfer="tcp")
    for text, said in {
        "prefill=1": "say how many engines of each",
        "prefill=0,decode=1": "prefill 0 is not from 1 to 64",
        "prefill=1,decode=1,transfer=rdma": "transfer is one of shm, tcp",
        "prefill=1,decode=1,decoder=2": "did you mean decode",
        "prefill=1,decode=1,prefill-tp=2,by=layer": "by=layer needs prefill-tp=1",
    }.items():
        with pytest.raises(KvtoolError, match=said):
            parse_disaggregation(text)
