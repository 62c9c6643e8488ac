"""On a real GPU: the ceiling is complete, and lies between what is plausible and what the memory can do."""

from __future__ import annotations

import pytest
import torch

from kvtool.machine.environment import describe_environment
from kvtool.machine.roofline import measure_roofline

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_the_ceiling_of_a_gpu():
    ceiling = measure_roofline("cuda:0", torch.bfloat16, seconds=2.0)
    assert ceiling.read_buffer_bytes >= 2 * ceiling.llc_bytes
    assert "read triton" in ceiling.kernels
    assert 0.7 * ceiling.copy_gbps < ceiling.read_gbps < 1.5 * ceiling.copy_gbps
    assert ceiling.tflops > 1


def test_the_environment_of_a_gpu():
    environment = describe_environment("cuda:0")
    assert environment["gpu"] == torch.cuda.get_device_name(0)
    assert environment["gpu_memory_bytes"] > 1 << 30
    assert environment["llc_bytes"] > 1 << 20
