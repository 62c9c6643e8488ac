from __future__ import annotations

import pytest

from kvtool.replay.loops.core import Core
from kvtool.replay.loops.native import native
from kvtool.replay.loops.twin import PythonCore


@pytest.fixture(params=["c", "python"])
def core(request: pytest.FixtureRequest) -> Core:
    """Both loops, which must give the same numbers; the one in C where this machine can build it."""
    if request.param == "python":
        return PythonCore()
    built = native()
    if built is None:
        pytest.skip("there is no gcc here")
    return built
