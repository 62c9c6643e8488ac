"""All of `kvtool tiers`: what host memory and a disk move, and from which prefix length on that beats computing."""

from __future__ import annotations

from contextlib import ExitStack

from kvtool.bench.session import Outcome, Progress, Step
from kvtool.bench.tiers.break_even import PROMPT_TOKENS, break_even_rows, measured_prefill, tier_speeds
from kvtool.bench.tiers.copies import Sides, copy_steps
from kvtool.bench.tiers.disk import disk_name, disk_steps
from kvtool.bench.tiers.options import TiersOptions
from kvtool.catalog.model import Model
from kvtool.engine.config import resolve_dtype
from kvtool.engine.decoder.transformer import runnable_decoder
from kvtool.engine.pool import pool_specs
from kvtool.machine.device import resolve_device
from kvtool.machine.disk import scratch_file
from kvtool.machine.environment import describe_environment
from kvtool.machine.other_load import LoadMeter
from kvtool.results import BreakEvenRow, TierRow, TiersDocument
from kvtool.results.warnings import load_warnings
from kvtool.sizing.formats import parse_cache_format
from kvtool.sizing.layers import layer_specs
from kvtool.sizing.specs import CacheSpec
from kvtool.units import format_bytes

DEFINITIONS = {
    "tier": "dram: host memory. disk: a file past the page cache. Any other name is no disk, and why is remarked",
    "direction": "down: from the block pool, or written; up: to it, or read; both: at once",
    "gbps": "1e9 bytes a second, of rounds of at least 20 ms (disk) or of calls (dram)",
    "latency_us": "median of a request (disk), or of a call with all its copies (dram)",
    "device_s": "seconds a request: a GPU's own, else of the wall clock",
    "host_s": "seconds of this process's processors a request; beside a product, without what that takes alone",
    "break_even": "loading takes latency + bytes / speed, computing FLOPs / (FLOP/s of a measured prefill)",
    "fsync": "writes do not wait for the disk's own cache: nothing is lost but pages that can be computed again",
}


def measure_tiers(model: Model, options: TiersOptions, *, progress: Progress) -> Outcome[TiersDocument]:
    """Everything asked for. Ctrl-C keeps the rows that were done. Raises KvtoolError or DeviceError."""
    runnable_decoder(model)
    device = resolve_device(options.device)
    dtype = resolve_dtype(options.dtype, model, device)
    cache_format = parse_cache_format(dtype if options.kv_cache_dtype == "auto" else options.kv_cache_dtype, dtype)
    specs = pool_specs(layer_specs(model, cache_format))
    sizes = model_sizes(specs, options.block_size)
    load = LoadMeter()
    rows, assumptions, interrupted = _rows(options, specs, sizes, Sides(specs, options, device), progress)
    break_even: list[BreakEvenRow] = []
    if not interrupted:
        progress("measuring a prefill", 1.0)
        prefill = measured_prefill(model, options)
        break_even = break_even_rows(
            model, tier_speeds(rows), prefill, page_bytes=sizes["full block"], block_size=options.block_size
        )
        assumptions.append(
            f"computing goes on at the FLOP/s of a prefill of {PROMPT_TOKENS} tokens through {prefill.layers} layers"
        )
    environment = describe_environment(str(device), other_load_cores=load.other_cores())
    document = TiersDocument(
        environment=environment,
        definitions=DEFINITIONS,
        assumptions=[
            *model.assumed,
            *assumptions,
            *load_warnings(environment),
            *(["interrupted: rows are missing"] * interrupted),
        ],
        inputs={
            "model": model.id,
            "dtype": dtype,
            "kv_cache_dtype": cache_format.name,
            "block_size": options.block_size,
            "device": str(device),
            "file_bytes": options.file_bytes,
            "point_s": options.point_s,
            "seed": options.seed,
        },
        rows=rows,
        tiers=tier_speeds(rows),
        break_even=break_even,
    )
    return Outcome(document=document, interrupted=interrupted, errors=[])


def model_sizes(specs: tuple[CacheSpec, ...], block_size: int) -> dict[str, int]:
    """Bytes of a page of the largest layer, and of all layers."""
    pages = [spec.page_bytes(block_size) for spec in specs]
    return {"layer block": max(pages), "full block": sum(pages)}


def _rows(
    options: TiersOptions, specs: tuple[CacheSpec, ...], sizes: dict[str, int], sides: Sides, progress: Progress
) -> tuple[list[TierRow], list[str], bool]:
    """What was measured, what is to be said of it, and whether Ctrl-C ended it."""
    rows: list[TierRow] = []
    with ExitStack() as files:
        steps, assumptions = list(copy_steps(options, sizes, sides)), []
        if options.disk is not None:
            progress("writing the disk's file", 0.0)
            scratch = files.enter_context(scratch_file(options.disk, options.file_bytes))
            name, remark = disk_name(options.disk, direct=scratch.direct)
            steps += disk_steps(options, sizes, scratch, name, remark)
            if name != "disk":
                assumptions.append(f"no disk was measured: {remark}")
            if scratch.size_bytes < options.file_bytes:
                assumptions.append(f"the disk's file has {format_bytes(scratch.size_bytes)}: a tenth of it stays free")
        interrupted = _run(steps, rows, progress)
    return rows, assumptions, interrupted


def _run(steps: list[Step[TierRow]], rows: list[TierRow], progress: Progress) -> bool:
    """Whether Ctrl-C came. Raises KeyboardInterrupt where no row was done."""
    try:
        for index, step in enumerate(steps):
            progress(f"{index + 1} of {len(steps)}: {step.name}", index / len(steps))
            rows.append(step.measure())
    except KeyboardInterrupt:
        if not rows:
            raise
        return True
    return False
