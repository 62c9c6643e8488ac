from __future__ import annotations

import pytest

from kvtool.sizing.dtypes import parse_float_dtype, parse_weight_dtype
from kvtool.system.errors import KvtoolError


def test_unknown_names_are_refused_with_the_list() -> None:
    with pytest.raises(KvtoolError, match=r"unknown state dtype 'fp8': use one of auto, fp32, bf16, fp16"):
        parse_float_dtype("fp8", "state dtype")
    with pytest.raises(KvtoolError, match=r"unknown weight dtype 'int3'.*int4"):
        parse_weight_dtype("int3")
