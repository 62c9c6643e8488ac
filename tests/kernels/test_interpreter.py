"""The Triton kernels in Triton's interpreter: each file of kernel tests once more, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import triton

TOGETHER = (
    ("test_decode.py", "test_store.py", "test_step.py"),
    ("test_prefill.py", "test_mla.py"),
    (
        *("test_experts.py", "test_fused.py", "triton/test_products.py", "triton/test_tuned.py"),
        *("packed/test_groups.py", "packed/test_kivi.py"),
    ),
)

# numpy warns from 1.25 on of a conversion that the interpreter of triton 3.6 makes, and from 2.4 on refuses it.
QUIET = "ignore:Conversion of an array with ndim:DeprecationWarning"
REFUSED = triton.__version__ < "3.7" and numpy.lib.NumpyVersion(numpy.__version__) >= "2.4.0"


@pytest.mark.skipif(REFUSED, reason="the interpreter of triton 3.6 needs numpy < 2.4")
@pytest.mark.parametrize("files", TOGETHER, ids=lambda files: files[0])
def test_triton_interpreted(files: tuple[str, ...]) -> None:
    paths = [str(Path(__file__).parent / file) for file in files]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", QUIET, *paths]
    result = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
