"""`kvtool env`: one JSON document or a table, and devices and dtypes that are not there refused in one line."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from kvtool.cli.app import app
from kvtool.machine import other_load, roofline
from kvtool.machine.other_load import Usage
from kvtool.system.errors import DeviceError, KvtoolError
from kvtool.units import MIB


def run(*arguments):
    result = CliRunner().invoke(app, ["env", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(roofline, "stream_buffer_bytes", lambda device, llc_bytes: MIB)
    monkeypatch.setattr(roofline, "FLOPS_SHARE", 0.001)


def test_json_is_one_document():
    document = json.loads(run("--json", "--device", "cpu"))
    assert document["schema"] == "kvtool.env/1"
    assert document["environment"]["device"] == "cpu"
    assert document["roofline"] is None


def test_measure_adds_the_roofline(quick):
    document = json.loads(run("--json", "--device", "cpu", "--measure", "--dtype", "fp32"))
    assert document["roofline"]["dtype"] == "float32"
    assert document["roofline"]["read_gbps"] > 0


def test_the_load_of_others_is_measured_beside_and_warned_of(quick, monkeypatch):
    readings = iter([Usage(wall_s=0.0, busy_s=0.0, own_s=0.0), Usage(wall_s=10.0, busy_s=19.0, own_s=10.0)] * 2)
    monkeypatch.setattr(other_load, "read_usage", lambda: next(readings))
    document = json.loads(run("--json", "--device", "cpu", "--measure"))
    assert document["environment"]["other_load_cores"] == 0.9
    text = " ".join(run("--device", "cpu", "--measure").split())
    assert "- another process used 0.9 cores while this ran" in text
    monkeypatch.setattr(other_load, "read_usage", lambda: None)
    assert json.loads(run("--json", "--device", "cpu"))["environment"]["other_load_cores"] is None


def test_the_tables_name_the_processor_and_every_kernel(quick):
    text = run("--device", "cpu", "--measure")
    assert "processor" in text
    assert "matrix-vector" in text
    assert "TFLOP/s" in text


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("--device", "gpu"), KvtoolError, "'gpu'"),
        (("--device", "cuda:99"), DeviceError, "'cuda:99' is not here"),
        (("--dtype", "int4"), KvtoolError, "'int4'"),
    ],
)
def test_what_is_not_there_is_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        run(*arguments)
