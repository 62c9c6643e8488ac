"""The roofline, in pure numbers: work takes as long as its bytes or its FLOPs, whichever take longer."""

from __future__ import annotations


def memory_s(num_bytes: float, gbps: float) -> float:
    """Seconds to move the bytes at `gbps` (1e9 bytes a second)."""
    return num_bytes / (gbps * 1e9)


def compute_s(flops: float, tflops: float) -> float:
    """Seconds to do the FLOPs at `tflops` (1e12 a second)."""
    return flops / (tflops * 1e12)


def bound(memory_s: float, compute_s: float) -> str:
    """memory | compute: what takes longer, memory where both take as long."""
    return "memory" if memory_s >= compute_s else "compute"
