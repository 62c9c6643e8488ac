"""What the device itself can do, measured: bytes read and copied per second, and FLOP/s of a matrix product.

The ceiling of a read is the best of several kernels, because no single one reaches it on every device: on some CPUs a
matrix-vector product prefetches better than a sum, and a compiled stream better than both. Kernels take turns, so that
a neighbour's burst hits all of them alike; a kernel's figure is the best median of any `WINDOW` turns in a row. A
single lucky turn cannot set it, and an unlucky stretch cannot lower it, which would make a later bandwidth look higher
than the device allows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from kvtool.machine.timers import Call, CallTimer, call_timer, is_cuda
from kvtool.system.errors import DeviceError
from kvtool.units import GIB, KIB, MIB

if TYPE_CHECKING:
    import torch

WINDOW = 3
MAX_ROUNDS = 200
MOST_WEIGHTS_BYTES = 512 * MIB  # that are read at a time: as many more come from memory alike
READ_SHARE, COPY_SHARE, FLOPS_SHARE = 0.5, 0.15, 0.35
CPU_PRODUCTS = ((512, 512, 512), (1024, 1024, 1024), (512, 2048, 2048), (2048, 2048, 2048))
GPU_PRODUCTS = ((4096, 4096, 4096), (8192, 8192, 8192), (4096, 8192, 14336))
CPU_CACHE = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True)
class Kernel:
    """A call and the work it does: bytes for a stream, FLOPs for a matrix product."""

    name: str
    call: Call
    work: int


@dataclass(frozen=True)
class Ceiling:
    """The device's own limits. `kernels`: each kernel's figure (GB/s; TFLOP/s for `matmul`), `samples`: its turns."""

    read_gbps: float
    copy_gbps: float
    tflops: float
    read_buffer_bytes: int
    llc_bytes: int | None
    dtype: str
    kernels: dict[str, float]
    samples: dict[str, int]

    def best_of(self, other: Ceiling) -> Ceiling:
        """The higher of two measurements, figure by figure: before and after a run, they bound it."""
        return replace(
            self,
            read_gbps=max(self.read_gbps, other.read_gbps),
            copy_gbps=max(self.copy_gbps, other.copy_gbps),
            tflops=max(self.tflops, other.tflops),
            kernels={k: max(v, other.kernels.get(k, v)) for k, v in self.kernels.items()},
            samples={k: n + other.samples.get(k, 0) for k, n in self.samples.items()},
        )


def measure_roofline(device: str, dtype: torch.dtype, *, seconds: float = 3.0) -> Ceiling:
    """Measure `device` (`cpu`, `cuda`, `cuda:1`) for about `seconds` with the threads torch is set to.

    Reads and copies stream over a buffer of several times the last-level cache; FLOP/s are of `dtype`.
    Raises DeviceError when the buffer does not fit.
    """
    import torch

    llc_bytes = last_level_cache_bytes(device)
    buffer_bytes = stream_buffer_bytes(device, llc_bytes)
    timer = call_timer(device)
    try:
        with torch.inference_mode():
            buffer = read_buffer(device, dtype, buffer_bytes)
            reads = race(read_kernels(buffer), timer=timer, seconds=seconds * READ_SHARE)
            copies = race([copy_kernel(buffer)], timer=timer, seconds=seconds * COPY_SHARE)
            del buffer
            products = race(matmul_kernels(device, dtype, timer, seconds), timer=timer, seconds=seconds * FLOPS_SHARE)
    except (torch.OutOfMemoryError, MemoryError) as error:
        needed = f"the {buffer_bytes // MIB} MiB that measuring its bandwidth needs"
        raise DeviceError(f"{device} has no room for {needed}: free memory on it") from error
    turns = {**reads, **copies, **products}
    rates = {name: best_rate(samples) for name, samples in turns.items()}
    return Ceiling(
        read_gbps=max(rates[name] for name in reads) / 1e9,
        copy_gbps=max(rates[name] for name in copies) / 1e9,
        tflops=max(rates[name] for name in products) / 1e12,
        read_buffer_bytes=buffer_bytes,
        llc_bytes=llc_bytes,
        dtype=str(dtype).removeprefix("torch."),
        kernels={name: rate / (1e12 if name in products else 1e9) for name, rate in rates.items()},
        samples={name: len(samples) for name, samples in turns.items()},
    )


def race(kernels: list[Kernel], *, timer: CallTimer, seconds: float) -> dict[str, list[float]]:
    """Work per second of every turn: one untimed call each, then rounds until `seconds` are over, at least WINDOW."""
    for kernel in kernels:
        kernel.call()
    rates: dict[str, list[float]] = {kernel.name: [] for kernel in kernels}
    deadline = time.perf_counter() + seconds
    for turn in range(MAX_ROUNDS):
        if turn >= WINDOW and time.perf_counter() >= deadline:
            break
        for kernel in kernels:
            rates[kernel.name].append(kernel.work / timer(kernel.call))
    return rates


def best_rate(rates: list[float]) -> float:
    """The highest median of WINDOW turns in a row."""
    return max(median(rates[i : i + WINDOW]) for i in range(max(1, len(rates) - WINDOW + 1)))


def read_buffer(device: str, dtype: torch.dtype, num_bytes: int) -> torch.Tensor:
    """Ones to stream over, in pages as large as those that hold the engine's weights."""
    import torch

    from kvtool.kernels.cpu.memory import huge_pages

    return huge_pages(torch.empty(num_bytes // dtype.itemsize, dtype=dtype, device=device)).fill_(1)


def read_kernels(buffer: torch.Tensor) -> list[Kernel]:
    """Kernels that read the whole buffer once and write next to nothing."""
    import torch

    from kvtool.kernels.cpu.native import native

    floats = buffer.view(torch.float32)
    half = floats.numel() // 2
    columns = 8192
    rows, weights = floats.view(-1, columns), buffer.view(-1, columns)
    vector = torch.ones(columns, dtype=torch.float32, device=buffer.device)
    long_vector = torch.ones(rows.shape[0], dtype=torch.float32, device=buffer.device)
    eight_tokens = torch.ones(8, columns, dtype=buffer.dtype, device=buffer.device)
    calls: dict[str, Call] = {
        "read sum": lambda: floats.sum(),
        "read dot": lambda: torch.dot(floats[:half], floats[half:]),
        "read matrix-vector": lambda: torch.mv(rows, vector),
        "read vector-matrix": lambda: torch.mv(rows.t(), long_vector),
        "read linear of 8 tokens": lambda: torch.nn.functional.linear(eight_tokens, weights),
    }
    if buffer.is_cuda:
        calls["read triton"] = _triton_read(floats)
    elif (kernels := native()) is not None:
        calls["read compiled"] = lambda: kernels.read_all(buffer)
    return [Kernel(name, call, buffer.nbytes) for name, call in calls.items()]


def weights_kernels(weights: Sequence[torch.Tensor]) -> list[Kernel]:
    """The one that reads these weights as a step does, in its order and with all threads; none without compiled
    kernels."""
    from kvtool.kernels.cpu.native import native

    kernels, ends = native(), list(accumulate(weight.nbytes for weight in weights))
    read = [weight for weight, end in zip(weights, ends, strict=True) if end <= MOST_WEIGHTS_BYTES] or weights[:1]
    if kernels is None or not read:
        return []

    def read_all() -> None:
        for weight in read:
            kernels.read_all(weight)

    return [Kernel("read weights", read_all, sum(weight.nbytes for weight in read))]


def _triton_read(floats: torch.Tensor) -> Call:
    """The paged kernels read by Triton's loads, which can outrun torch's reductions: the ceiling must know them too."""
    import torch

    from kvtool.kernels.triton.stream import stream_read

    num_sms = torch.cuda.get_device_properties(floats.device).multi_processor_count
    return lambda: stream_read(floats, num_sms)


def copy_kernel(buffer: torch.Tensor) -> Kernel:
    """One half copied onto the other: the bytes read plus the bytes written."""
    half = buffer.numel() // 2
    source, target = buffer[:half], buffer[half : 2 * half]
    return Kernel("copy", lambda: target.copy_(source), source.nbytes + target.nbytes)


def matmul_kernels(device: str, dtype: torch.dtype, timer: CallTimer, seconds: float) -> list[Kernel]:
    """Square products and one shaped like a prefill, as large as the time allows (a slow dtype gets the small ones)."""
    shapes = CPU_PRODUCTS + (GPU_PRODUCTS if is_cuda(device) else ())
    smallest = matmul_kernel(device, dtype, shapes[0])
    smallest.call()
    flops_per_s = smallest.work / timer(smallest.call)
    fitting = [s for s in shapes[1:] if 2 * s[0] * s[1] * s[2] / flops_per_s < seconds * FLOPS_SHARE / (2 * WINDOW)]
    return [smallest, *(matmul_kernel(device, dtype, shape) for shape in fitting)]


def product_name(shape: tuple[int, int, int]) -> str:
    """What the kernel of a product [m, k] by [k, n] is called."""
    return f"matmul {'x'.join(map(str, shape))}"


def matmul_kernel(device: str, dtype: torch.dtype, shape: tuple[int, int, int]) -> Kernel:
    """The product of random [m, k] and [k, n]."""
    import torch

    m, k, n = shape

    # Random values: a GPU multiplies constants at a higher clock than it can hold on real weights.
    draw = torch.Generator(device).manual_seed(0)
    a = torch.randn(m, k, dtype=dtype, device=device, generator=draw)
    b = torch.randn(k, n, dtype=dtype, device=device, generator=draw)
    out = torch.empty(m, n, dtype=dtype, device=device)
    return Kernel(product_name(shape), lambda: torch.mm(a, b, out=out), 2 * m * k * n)


def stream_buffer_bytes(device: str, llc_bytes: int | None) -> int:
    """Bytes to stream over: 4x the last-level cache within 256..512 MiB (GPU: 1..4 GiB), never under twice of it."""
    low, high = (GIB, 4 * GIB) if is_cuda(device) else (256 * MIB, 512 * MIB)
    cache = llc_bytes or 0
    return -(-max(2 * cache, min(max(4 * cache, low), high)) // MIB) * MIB


def last_level_cache_bytes(device: str, cpu_cache: Path = CPU_CACHE) -> int | None:
    """The largest cache before memory: a GPU's L2, the highest level Linux lists for CPU 0. None if not said."""
    if is_cuda(device):
        import torch

        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes: dict[int, int] = {}
    for index in cpu_cache.glob("index*"):
        level, size = _read(index / "level"), _parse_cache_size(_read(index / "size"))
        if level is not None and size is not None and _read(index / "type") != "Instruction":
            sizes[int(level)] = size
    return sizes[max(sizes)] if sizes else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _parse_cache_size(text: str | None) -> int | None:
    """`107520K` -> bytes, as Linux writes it."""
    units = {"K": KIB, "M": MIB, "G": GIB}
    if not text or not text[:-1].isdigit() or text[-1] not in units:
        return None
    return int(text[:-1]) * units[text[-1]]
