"""The Triton kernels in Triton's interpreter: each file of kernel tests once more, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = ("test_store.py", "test_decode.py", "test_prefill.py", "test_mla.py")


@pytest.mark.parametrize("file", FILES)
def test_triton_interpreted(file: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(Path(__file__).with_name(file))]
    result = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
