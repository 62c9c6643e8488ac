"""What the compiler made of every kernel that this run compiled: registers, spills, shared memory, instructions."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from tools.gpu.cases import Case, LacksError, Result, serve
from tools.gpu.plan import COMPILERS

FACTS = ("name", "num_warps", "num_stages", "maxnreg", "shared")
INSTRUCTIONS = {"wgmma": "wgmma.mma_async", "tma": "cp.async.bulk.tensor", "mma": "mma.sync", "cp_async": "cp.async."}


def cases(given: Namespace) -> Sequence[Case]:
    """One: a table of all of Triton's cache."""
    return [Case("registers", partial(registers, Path(os.environ["TRITON_CACHE_DIR"])))]


def registers(cache: Path) -> Result:
    """A row a kernel, those that spill most first. Raises LacksError where nothing was compiled."""
    binaries = sorted(cache.rglob("*.cubin"))
    if not binaries:
        raise LacksError("Triton compiled nothing in this run")
    with ThreadPoolExecutor(COMPILERS) as pool:
        rows = list(pool.map(row, binaries))
    return {"kernels": sorted(rows, key=lambda one: (-one.get("local_bytes", 0), str(one["name"])))}


def row(binary: Path) -> dict[str, Any]:
    """Of one kernel; what cannot be read is left out."""
    facts = {"name": binary.stem, **dict(_metadata(binary))}
    ptx = binary.with_suffix(".ptx")
    if ptx.exists():
        text = ptx.read_text()
        facts |= {name: text.count(sign) for name, sign in INSTRUCTIONS.items()}
        facts["parameters"] = text.count(".param .")
    return facts | usage(binary)


def _metadata(binary: Path) -> Iterator[tuple[str, Any]]:
    try:
        found = json.loads(binary.with_suffix(".json").read_bytes())
    except (OSError, ValueError):
        return
    yield from ((name, found[name]) for name in FACTS if name in found)


def usage(binary: Path) -> dict[str, Any]:
    """What `cuobjdump` of Triton's own wheel says; local memory is what did not fit in registers."""
    import triton

    program = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    try:
        done = subprocess.run([program, "-res-usage", binary], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"unread": str(error)}
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", done.stdout)}
    if "REG" not in found:
        return {"unread": (done.stdout + done.stderr)[-300:]}
    return {"registers": found["REG"], "local_bytes": found.get("STACK", 0) + found.get("LOCAL", 0)}


if __name__ == "__main__":
    sys.exit(serve(cases))
