"""Compile what the launchers would launch, for a GPU that need not be here, and read what ptxas made of it.

The launchers run on meta tensors with a recorder in the place of each kernel, so the variants are exactly theirs.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kvtool.kernels.triton import (
    attention,
    experts,
    gpu,
    groups,
    pairs,
    products,
    route,
    rows,
    sample,
    step,
    store,
)
from kvtool.kernels.triton.tiles.rules import Target

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
OPTIONS = ("num_warps", "num_stages", "maxnreg", "launch_pdl")
POINTERS = {
    "torch.float32": "*fp32",
    "torch.bfloat16": "*bf16",
    "torch.float16": "*fp16",
    "torch.float8_e4m3fn": "*fp8e4nv",
    "torch.float8_e5m2": "*fp8e5",
    "torch.int8": "*i8",
    "torch.uint8": "*u8",
    "torch.int16": "*i16",
    "torch.int32": "*i32",
    "torch.int64": "*i64",
}


@dataclass(frozen=True)
class Launch:
    """One recorded launch: what the JIT would have compiled."""

    kernel: triton.JITFunction
    arguments: dict[str, object]
    options: dict[str, int]

    @property
    def name(self) -> str:
        return self.kernel.__name__

    def key(self) -> str:
        """Equal for launches that compile to the same code."""
        source = self.source()
        return str((self.name, source.signature, source.constants, source.attrs, self.options))

    def source(self) -> ASTSource:
        """Specialised as a launch specialises: 1 is a constant, and multiples of 16 (and all pointers) are marked."""
        signature, constants, attributes = {}, {}, {}
        for index, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            special = isinstance(value, int) and not parameter.do_not_specialize
            if parameter.is_constexpr or value is None or (special and value == 1):
                signature[parameter.name], constants[parameter.name] = "constexpr", value
                continue
            signature[parameter.name] = _type(value)
            if signature[parameter.name].startswith("*") or (special and value % 16 == 0):
                attributes[(index,)] = [["tt.divisibility", 16]]
        return ASTSource(self.kernel, signature, constants, attributes)


@dataclass
class Recorder:
    """In the place of a jitted kernel: `recorder[grid](...)` keeps the launch and runs nothing."""

    kernel: triton.JITFunction
    launches: list[Launch] = field(default_factory=list)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self._record

    def _record(self, *args: object, **kwargs: object) -> None:
        options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        names = [parameter.name for parameter in self.kernel.params]
        arguments = dict(zip(names, args, strict=False)) | kwargs
        self.launches.append(Launch(self.kernel, arguments, options))


def record(call: Callable[[], object], target: Target) -> list[Launch]:
    """The launches of one call of a launcher, on a device such as `target`."""
    recorders: list[Recorder] = []
    with ExitStack() as patches:
        patches.enter_context(patch.object(gpu, "target", lambda device: target))
        for module in (attention, experts, groups, pairs, products, route, rows, sample, step, store):
            mine = {name: Recorder(kernel) for name, kernel in vars(module).items() if name.endswith("_kernel")}
            patches.enter_context(patch.multiple(module, **mine))
            recorders += mine.values()
        call()
    return [one for recorder in recorders for one in recorder.launches]


@dataclass(frozen=True)
class Compiled:
    """What a launch costs on a target."""

    registers: int
    shared_bytes: int
    local_bytes: int  # of a thread's local memory: what does not fit in registers spills there
    wgmma: int
    tma: int  # instructions that copy a box of memory
    buffers: int  # tiles of K and V kept in shared memory at once: the least over all loops; 0 without pipelining
    waits: bool  # for the launch in front of it, before it reads or writes any memory but to prefetch it


def compile_launch(one: Launch, capability: int) -> Compiled:
    binary = triton.compile(one.source(), target=GPUTarget("cuda", capability, 32), options=one.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
    depths = [int(d) for d in re.findall(r"ttg\.local_alloc\s*:.*?memdesc<(\d+)x\d+x\d+x", binary.asm["ttgir"])]
    return Compiled(
        registers=int(re.search(r"REG:(\d+)", usage).group(1)),
        shared_bytes=binary.metadata.shared,
        local_bytes=sum(int(size) for size in re.findall(r"(?:STACK|LOCAL):(\d+)", usage)),
        wgmma=binary.asm["ptx"].count("wgmma.mma_async"),
        tma=binary.asm["ptx"].count("cp.async.bulk.tensor"),
        buffers=min(depths, default=0),
        waits=_waits_first(binary.asm["ptx"]),
    )


def _waits_first(ptx: str) -> bool:
    touched = re.search(r"\b(ld|st|red|atom)\.(global|volatile|relaxed)|\bcp\.async", ptx)
    return 0 <= ptx.find("griddepcontrol.wait") < (touched.start() if touched else len(ptx))


def _type(value: object) -> str:
    if isinstance(value, float):
        return "fp32"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return POINTERS[str(value.dtype)]


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], check=True, capture_output=True, text=True).stdout
