"""The streaming read adds up every element once, and compiles to wide loads without spills."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

# The interpreter is chosen when triton is imported, so it gets a process of its own.
SUMS = """
import torch
from kvtool.kernels.triton.stream import BLOCK, PROGRAMS_PER_SM, stream_read
for numel in (1, BLOCK, 5 * BLOCK + 17, 40 * BLOCK):
    x = torch.arange(numel, dtype=torch.float32) % 7
    sums = stream_read(x, num_sms=2)
    assert sums.shape == (2 * PROGRAMS_PER_SM,), sums.shape
    assert sums.sum() == x.sum(), (numel, sums.sum(), x.sum())
"""


def test_every_element_is_read_once():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    result = subprocess.run([sys.executable, "-c", SUMS], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_what_it_cannot_read_is_refused():
    import torch

    from kvtool.kernels.triton.stream import stream_read

    with pytest.raises(ValueError, match="contiguous fp32"):
        stream_read(torch.zeros(4, dtype=torch.bfloat16), num_sms=1)
    with pytest.raises(ValueError, match="contiguous fp32"):
        stream_read(torch.zeros(4)[::2], num_sms=1)


@pytest.mark.aot
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_it_compiles_to_16_byte_loads_and_spills_nothing(capability):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from kvtool.kernels.triton.jit.stream import stream_kernel
    from kvtool.kernels.triton.stream import BLOCK, NUM_WARPS

    signature = {"x_ptr": "*fp32", "sums_ptr": "*fp32", "numel": "i32", "BLOCK": "constexpr"}
    aligned = {(index,): [["tt.divisibility", 16]] for index in range(3)}
    source = ASTSource(stream_kernel, signature, {"BLOCK": BLOCK}, aligned)
    compiled = triton.compile(source, GPUTarget("cuda", capability, 32), {"num_warps": NUM_WARPS})
    sass = disassembled(compiled.asm["cubin"])
    assert re.search(r"LDG\.E\.\S*128", sass)
    assert not re.search(r"\b(LDL|STL)\b", sass)


def disassembled(cubin: bytes) -> str:
    import triton

    nvdisasm = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([nvdisasm, file.name], check=True, capture_output=True, text=True).stdout
