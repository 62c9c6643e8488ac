"""Every kernel test runs on each backend that can run here: torch on the CPU, with the kernels that gcc compiles and
without them, and, where there is CUDA, compiled Triton.

Triton's interpreter is chosen for a whole process when triton is imported, so `test_interpreter.py` runs these same
files in processes of their own, with TRITON_INTERPRET=1; there Triton on the CPU is the only backend.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
import torch

from kvtool.kernels import load_kernels
from kvtool.kernels.interface import Kernels

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True)
class Backend:
    kernels: Kernels
    device: str
    interpreted: bool


def _backends() -> list[object]:
    if INTERPRETED:
        return [pytest.param(("triton", "cpu"), id="interpreter")]
    backends = [pytest.param(("torch", "cpu"), id="torch"), pytest.param(("no gcc", "cpu"), id="no-gcc")]
    if torch.cuda.is_available():
        backends.append(pytest.param(("triton", "cuda:0"), id="cuda", marks=pytest.mark.gpu))
    return backends


@pytest.fixture(params=_backends())
def backend(request: pytest.FixtureRequest) -> Backend:
    name, device = request.param
    if name == "no gcc":
        request.getfixturevalue("without_compiler")
        name = "torch"
    return Backend(load_kernels(name), device, INTERPRETED)
