from __future__ import annotations

from pathlib import Path

import pytest

from kvtool.results import Calibration, encode, read_calibration
from kvtool.system.errors import KvtoolError


def test_a_written_calibration_is_read_back(tmp_path: Path) -> None:
    calibration = Calibration(weights_bytes=16_000, kv_pool_bytes=48_000, source="vLLM 0.33.0, its log")
    path = tmp_path / "calibration.json"
    path.write_bytes(encode(calibration))
    assert read_calibration(path) == calibration
    assert calibration.measured == {"weights_bytes": 16_000, "kv_pool_bytes": 48_000}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "is not a kvtool.calibration/1 document"),
        ('{"schema": "kvtool.calibration/1"}', "missing required field `source`"),
        ('{"schema": "kvtool.calibration/1", "source": "a log"}', "gives none of weights_bytes"),
        ('{"schema": "kvtool.calibration/1", "source": "x", "weights_bytes": -1}', r"Expected `int` >= 0"),
        ('{"schema": "kvtool.calibration/1", "source": "x", "weights_bytes": 1.5}', "Expected `int"),
    ],
)
def test_what_is_no_calibration_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(KvtoolError, match=message):
        read_calibration(path)
