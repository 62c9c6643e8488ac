"""The registry of peers: names, and libraries that cannot be imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kvtool.bench.kernels.peers.peer import load_peer
from kvtool.bench.peers import (
    KERNEL_PEERS,
    PeerError,
    imported,
    one_line,
    peer_names,
    why_not_imported,
)
from kvtool.system.errors import KvtoolError


def test_names_come_once_and_in_one_order() -> None:
    assert peer_names(["flex", "sdpa", "flex"]) == ("sdpa", "flex")
    assert peer_names(["all"]) == KERNEL_PEERS
    assert peer_names([]) == ()
    assert peer_names(["b"], known=("a", "b")) == ("b",)


@pytest.mark.parametrize(
    ("given", "message"),
    [("flexx", "unknown peer 'flexx': did you mean flex"), ("zzz", "of all, sdpa, cudnn, naive, gathered, flex")],
)
def test_an_unknown_name_is_refused_with_the_nearest(given: str, message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        peer_names([given])


def test_every_peer_is_a_module_that_loads_without_its_library() -> None:
    for name in KERNEL_PEERS:
        peer = load_peer(name)
        assert callable(peer.why_not)
        assert callable(peer.prepare)
    assert not {"flashinfer", "flash_attn", "vllm", "sglang"} & sys.modules.keys()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_library", "not importable: No module named 'no_such_library'"),
        ("raise OSError('libcudart.so.11:\\n cannot open')", "not importable: OSError: libcudart.so.11: cannot open"),
        ("raise SystemExit('no GPU')", "not importable: SystemExit: no GPU"),
    ],
)
def test_whatever_an_import_raises_is_a_reason(
    source: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_library.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    assert why_not_imported("broken_library") == reason
    with pytest.raises(PeerError, match="not importable"):
        imported("broken_library")


def test_the_reason_is_that_of_the_place_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_place.py").write_text("raise OSError('libcudart.so.11')")
    monkeypatch.syspath_prepend(tmp_path)
    assert why_not_imported("broken_place", "no_such_place") == "not importable: OSError: libcudart.so.11"
    assert why_not_imported("no_such_place", "broken_place") == "not importable: OSError: libcudart.so.11"
    assert why_not_imported("first_place", "second_place") == "not importable: No module named 'first_place'"


def test_the_first_module_that_imports_is_taken() -> None:
    assert imported("no_such_library", "json").__name__ == "json"
    assert why_not_imported("no_such_library", "json") is None


def test_an_error_is_one_line_of_a_bearable_length() -> None:
    assert one_line(ValueError("a\n  b")) == "ValueError: a b"
    assert one_line(ValueError("")) == "ValueError: ValueError"
    assert len(one_line(ValueError("x" * 999))) == 160
