"""What a run ran on, as a table: the environment and the measured roofline of a document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvtool.report.tables import Table
from kvtool.results import EnvDocument
from kvtool.results.warnings import load_warnings
from kvtool.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

# What to call the keys of `environment`, in the order a reader looks for them; unnamed ones follow under their own key.
NAMES = {
    "device": "device",
    "cpu": "processor",
    "cpu_features": "processor features",
    "physical_cores": "cores",
    "logical_cores": "hardware threads",
    "torch_threads": "torch threads",
    "cpu_kernels": "CPU kernels in bf16",
    "cpu_kernels_reason": "why not compiled",
    "memory_bytes": "memory",
    "other_load_cores": "cores that others used",
    "gpu": "GPU",
    "gpu_memory_bytes": "GPU memory",
    "gpu_sm_count": "GPU multiprocessors",
    "gpu_compute_capability": "compute capability",
    "gpu_driver": "driver",
    "cuda": "CUDA",
    "gpu_sm_clock_max_mhz": "highest SM clock, MHz",
    "gpu_memory_clock_max_mhz": "highest memory clock, MHz",
    "gpu_power_limit_w": "power limit, W",
    "llc_bytes": "last-level cache",
    "kvtool": "kvtool",
    "git_commit": "commit",
    "python": "Python",
    "torch": "torch",
    "triton": "triton",
    "os": "operating system",
    "date_utc": "date (UTC)",
}


def environment_table(environment: dict[str, Any]) -> Table:
    """One row a fact; what is not known (None) is left out."""
    ordered = [key for key in NAMES if key in environment] + [key for key in environment if key not in NAMES]
    rows = [
        (NAMES.get(k, k.replace("_", " ")), _text(k, environment[k])) for k in ordered if environment[k] is not None
    ]
    return Table(title="This machine", columns=("", ""), rows=rows, labels=2)


def _text(key: str, value: Any) -> str:
    if key.endswith("_bytes"):
        return format_bytes(value)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def ceiling_table(roofline: dict[str, Any]) -> Table:
    """The device's measured limits, and each kernel that was tried."""
    rows = [
        ("read", f"{roofline['read_gbps']:,.1f} GB/s", "best of the read kernels below"),
        ("copy", f"{roofline['copy_gbps']:,.1f} GB/s", "bytes read plus bytes written"),
        ("matrix product", f"{roofline['tflops']:,.2f} TFLOP/s", f"best of the products below, {roofline['dtype']}"),
    ]
    for name, rate in roofline["kernels"].items():
        unit = "TFLOP/s" if name.startswith("matmul") else "GB/s"
        rows.append((f"  {name}", f"{rate:,.2f} {unit}", f"{roofline['samples'][name]} turns"))
    cache = f"{format_bytes(roofline['llc_bytes'])} of cache" if roofline["llc_bytes"] else "a cache of unknown size"
    note = f"Streamed over {format_bytes(roofline['read_buffer_bytes'])}, against {cache}."
    return Table(
        title="Measured limits of this device", columns=("limit", "measured", "from"), rows=rows, labels=1, note=note
    )


def print_environment(document: EnvDocument, console: Console) -> None:
    """The environment, and the roofline where it was measured."""
    from rich.text import Text

    console.print(environment_table(document.environment))
    if document.roofline is not None:
        console.print(ceiling_table(document.roofline))
    for line in load_warnings(document.environment):
        console.print(Text(f"- {line}", style="yellow"))
