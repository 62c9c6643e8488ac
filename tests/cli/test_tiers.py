"""`kvtool tiers` as it is typed, with little memory, a small file and few rounds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kvtool.bench.tiers import copies, tiers
from kvtool.bench.tiers.break_even import Prefill
from kvtool.machine import disk
from kvtool.machine.filesystem import Filesystem
from kvtool.units import MIB
from tests.cli.in_process import Done, run

Kvtool = Callable[..., Done]
QUICK = ("--device", "cpu", "--seconds", "0.01", "--chunk-size", "64KiB", "--queue-depth", "1,2", "--file-size", "4MiB")


@pytest.fixture
def kvtool(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Kvtool:
    monkeypatch.setattr(copies, "CPU_BYTES", 4 * MIB)
    monkeypatch.setattr(copies, "CALL_BYTES", MIB)
    monkeypatch.setattr(copies, "CPU_PRODUCT", (64, 64, 64))
    monkeypatch.setattr(disk, "LEAST_ROUND_S", 0.0)
    monkeypatch.setattr(tiers, "measured_prefill", lambda model, options: Prefill(1e11, 4))
    return lambda *args: run(capsys, monkeypatch, "tiers", *args)


def test_json_is_one_document_with_every_row(kvtool: Kvtool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvtool.bench.tiers.disk.filesystem_of", lambda folder: Filesystem("ext4", "nvme0n1"))
    done = kvtool(*QUICK, "--disk", str(tmp_path), "--json", "--out", str(tmp_path / "out"))
    assert done.code == 0
    document = json.loads(done.out)
    assert document["schema"] == "kvtool.tiers/1"
    rows = document["rows"]
    kinds = {(row["tier"], row["method"], row["direction"]) for row in rows}
    assert {("dram", "copies", "up"), ("dram", "gathered pages", "both"), ("dram", "beside a product", "down")} <= kinds
    names = {row["tier"] for row in rows} - {"dram"}
    assert len(names) == 1  # a filesystem without O_DIRECT is called page cache
    name = names.pop()
    assert name in ("disk", "page cache")
    assert {(name, "requests", way) for way in ("up", "down", "both")} | {(name, "checked requests", "up")} <= kinds
    full = 16 * 30 * 3 * 64 * 2 * 2  # tokens, layers, heads, columns, K and V, bytes of bf16
    assert {row["size_bytes"] for row in rows if row["size"] == "full block"} == {full}
    assert all(row["gbps"]["p50"] > 0 and row["gbps"]["n"] >= 3 for row in rows)
    assert [row["tier"] for row in document["break_even"]] == ["dram", name]
    assert json.loads((tmp_path / "out" / "tiers.json").read_text()) == document
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_shape_nobody_knows_moves_pages_as_another(
    kvtool: Kvtool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiers, "_rows", lambda *_: ([], [], True))
    odd = tmp_path / "odd.json"
    shape = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    odd.write_text(json.dumps({"model_type": "oddball", "vocab_size": 256, **shape}))
    done = kvtool(str(odd), *QUICK, "--as", "llama", "--json")
    assert any("because --as says so" in note for note in json.loads(done.out)["assumptions"])
    assert "--as llama is how to read MODEL's config" in kvtool("--as", "llama").err


def test_memory_is_refused_the_name_of_a_disk(kvtool: Kvtool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvtool.bench.tiers.disk.filesystem_of", lambda folder: Filesystem("tmpfs"))
    done = kvtool(*QUICK, "--disk", str(tmp_path))
    assert "tmpfs: GB/s by requests in flight" in done.out
    assert "no disk was measured: tmpfs is memory, not a disk" in " ".join(done.out.split())
    assert "disk: GB/s" not in done.out


def test_an_interrupt_keeps_the_rows_that_were_done_and_leaves_no_file(
    kvtool: Kvtool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kvtool.bench.tiers.disk.serve", stop)
    done = kvtool(*QUICK, "--disk", str(tmp_path), "--json")
    assert done.code == 130
    document = json.loads(done.out)
    assert {row["tier"] for row in document["rows"]} == {"dram"}
    assert document["break_even"] == []
    assert "interrupted: rows are missing" in document["assumptions"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--disk", "/nowhere/at/all"), "cannot measure /nowhere/at/all: No such file or directory"),
        (("--queue-depth", "0"), "queue depth 0 must be from 1 to 4096"),
        (("--chunk-size", "lots"), "size 'lots' is not a size"),
        (("jamba-v0.1",), "the engine does not run"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(kvtool: Kvtool, args: tuple[str, ...], message: str) -> None:
    done = kvtool("--device", "cpu", *args)
    assert done.code in (2, 3)
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1
