"""Tensors in, tensors out: all that a decoder step computes. Knows nothing of models, requests or schedules.

Three folders implement `interface.Kernels`: `reference` (the obvious torch twins: read these first), `cpu` (torch and
C) and `triton`; `plain` is what they share. A caller loads one by name and never learns which ran.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from kvtool.system.errors import KvtoolError, did_you_mean

if TYPE_CHECKING:
    from kvtool.kernels.interface import Kernels

BACKENDS = ("triton", "torch", "reference")


def load_kernels(backend: str) -> Kernels:
    """The kernels called "triton", "torch" or "reference"; importing this package imports none of them."""
    if backend == "triton":
        if find_spec("triton") is None:
            raise KvtoolError("backend 'triton' needs the triton package, which is not installed here: use 'torch'")
        from kvtool.kernels.triton import launch

        return launch
    if backend == "torch":
        from kvtool.kernels.cpu import cpu

        return cpu
    if backend == "reference":
        from kvtool.kernels.reference import reference

        return reference
    raise KvtoolError(f"unknown backend {backend!r}{did_you_mean(backend, BACKENDS)} (one of {', '.join(BACKENDS)})")


def cpu_kernels() -> str:
    """What the CPU's kernels are here: "compiled", or "torch" where nothing can be compiled."""
    from kvtool.kernels.cpu.native import native

    return "torch" if native() is None else "compiled"


def why_not_compiled() -> str | None:
    """In words why the CPU's kernels are not compiled; None where they are."""
    from kvtool.kernels.cpu.native import why_not

    return why_not()
