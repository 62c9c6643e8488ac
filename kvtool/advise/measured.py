"""A machine as a bench document measured it, in the place of a card of the catalogue."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from kvtool.catalog.gpus import Gpu, find_gpu
from kvtool.replay.tiers.profile import BENCH, Measured
from kvtool.results import BenchDocument, read_document
from kvtool.system.errors import KvtoolError


def measured_card(gpu: Gpu | None, paths: Iterable[Path], measured: Measured) -> Gpu:
    """The card with the rate that its prefills reached, and, of bench documents alone, the machine that they ran on.

    Raises KvtoolError where neither is given, and for a document without the machine's bandwidth.
    """
    card = gpu or next((machine(path) for path in paths if _is_bench(path)), None)
    if card is None:
        raise KvtoolError("which card? name it with --gpu, or give what kvtool bench measured: --profile bench.json")
    return card if measured.tflops is None else msgspec.structs.replace(card, bf16_tflops=measured.tflops)


def machine(path: Path) -> Gpu:
    """What ran a benchmark: its memory, and the bandwidth and links that are known. Raises KvtoolError."""
    document = read_document(path, BenchDocument)
    facts = document.environment
    read_gbps = max((case.roofline.read_gbps_measured or 0.0 for case in document.cases), default=0.0)
    if not read_gbps:
        raise KvtoolError(f"{path} has no measured bandwidth: run kvtool bench with --parts latency")
    name = facts.get("gpu")
    if name is not None:
        return msgspec.structs.replace(find_gpu(str(name)), memory_bandwidth_gbps=read_gbps)
    memory = facts.get("memory_bytes")
    if not isinstance(memory, int):
        raise KvtoolError(f"{path} does not tell how much memory its machine has: name a card with --gpu")
    return Gpu(
        name=str(facts.get("cpu") or "processor"),
        vendor="",
        arch=None,
        memory_bytes=memory,
        source=f"measured in {path.name}",
        confidence="measured",
        memory_bandwidth_gbps=read_gbps,
    )


def _is_bench(path: Path) -> bool:
    try:
        found = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):
        return False
    return isinstance(found, dict) and found.get("schema") == BENCH
