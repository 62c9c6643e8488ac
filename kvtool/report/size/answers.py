"""What `kvtool size` answers beside its rows: what a shared prefix saves, tiers, requests at once, and solutions."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvtool.report.tables import Table
from kvtool.results import ENGINE_NAMES, SizeLengths, SizeRejected, SizeRow, SizeSetting, SizeSolution, SizeTier
from kvtool.units import format_bytes_short, format_length, format_ms

if TYPE_CHECKING:
    from rich.console import Console

TIER_NAMES = {"registers": "registers", "l2": "L2", "hbm": "HBM pool", "dram": "DRAM", "nvme": "NVMe"}
FLOAT_WEIGHTS = ("fp32", "bf16", "fp16")
COMMAND_WIDTH = 78  # of a printed command, its continuation mark included


def print_answers(rows: Sequence[SizeRow], console: Console) -> None:
    """What the rows of one model and cache dtype were asked for with --shared-prefix, --tiers and --lengths."""
    for row in rows:
        if row.sharing is not None:
            what = f"{format_length(row.inputs.context)} x {row.inputs.batch_size:,}"
            console.print(
                f"Prefix of {format_length(row.inputs.shared_prefix)} tokens, {what}: {row.sharing.words}", markup=False
            )
    if any(row.sharing for row in rows):
        console.print()
    if any(row.tiers for row in rows):
        console.print(tier_table(rows))
    if rows and rows[0].lengths is not None:
        console.print(lengths_table(rows[0].lengths))


def tier_table(rows: Sequence[SizeRow]) -> Table:
    """A block of lines a row: what each tier holds, and how long it takes to bring one sequence back into HBM."""
    lines: list[tuple[str, ...]] = []
    for row in rows:
        what = f"{format_length(row.inputs.context)} x {row.inputs.batch_size:,}"
        for tier in row.tiers or ():
            lines.append((what, *_tier_cells(tier)))
            what = ""
    shown = [tier for row in rows for tier in row.tiers or ()]
    note = "Registers, L2 and HBM hold one GPU's part of the cache"
    note += "; DRAM and NVMe all of it, once." if any(tier.scope == "node" for tier in shown) else "."
    if any(tier.reload_ms is not None for tier in shown):
        note += " reload: one sequence back into HBM at the link's listed rate."
    return Table(
        title="Where the cache could live",
        columns=(
            "context\nx batch",
            "tier",
            "holds",
            "the batch\ntakes",
            "of it",
            "tokens",
            "most\nseqs",
            "reload\nms",
        ),
        spare=("the batch\ntakes", "of it"),
        rows=lines,
        labels=2,
        note=note,
    )


def _tier_cells(tier: SizeTier) -> tuple[str, ...]:
    name, taken = TIER_NAMES[tier.name], format_bytes_short(tier.batch_bytes)
    if tier.capacity_bytes is None:
        return (name, "?", taken, "?", "?", "?", format_ms(tier.reload_ms))
    share = "-" if tier.batch_share is None else _percent(tier.batch_share)
    tokens = "no end" if tier.tokens is None else f"{tier.tokens:,}"
    return (
        name,
        format_bytes_short(tier.capacity_bytes),
        taken,
        share,
        tokens,
        f"{tier.sequences:,}",
        format_ms(tier.reload_ms),
    )


def _percent(share: float) -> str:
    """`0.4 %`, `37 %`, and `12 x` once it is many times over."""
    if share >= 10:
        return f"{share:,.0f} x"
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


def lengths_table(lengths: SizeLengths) -> Table:
    """How many requests fit at once: on average, nearly always, and if all were the longest."""
    rows = [
        ("on average", f"{lengths.expected_requests:,}"),
        (f"with {lengths.probability:.0%} probability", f"{lengths.likely_requests:,}"),
        (f"all as long as the longest ({lengths.max_tokens:,} tokens)", f"{lengths.worst_case_requests:,}"),
    ]
    note = (
        f"{lengths.source}: mean {lengths.mean_tokens:,.0f}, p50 {lengths.p50_tokens:,}, p95 {lengths.p95_tokens:,} "
        f"tokens, prompt and output; {lengths.method}."
    )
    return Table(title="Requests that fit at once", columns=("", "requests"), rows=rows, labels=1, note=note)


def print_solutions(solutions: Sequence[SizeSolution], rejected: Sequence[SizeRejected], console: Console) -> None:
    """The settings that are served, best first, and the commands of the best; where there are none, why."""
    from rich.text import Text

    if not solutions:
        console.print(
            Text.assemble(("Nothing that was tried fits", "bold"), ": the sizes below are those of the last try.")
        )
        for one in rejected:
            console.print(f"- {_setting(one)}: {one.reason}", markup=False, highlight=False)
        console.print()
        return
    best = solutions[0]
    console.print(best_sentence(best), style="bold", highlight=False, markup=False)
    console.print()
    console.print(solution_table(solutions))
    for command in (best.vllm, best.sglang):
        if command is not None:
            for line in wrapped_command(command):
                console.print(line, markup=False, highlight=False, soft_wrap=True)
            console.print()
    if best.reason is not None:
        console.print(f"{best.reason}\n", markup=False, highlight=False)


def best_sentence(best: SizeSolution) -> str:
    """`4 GPUs (tp4), bf16 cache: room for 32 users of 8k (vLLM 56.51, SGLang 56.45).`"""
    held = [
        f"{title} {_users(users)}" for name, title in ENGINE_NAMES.items() if (users := _held(best, name)) is not None
    ]
    asked = f"{best.users:,} user{'s' if best.users > 1 else ''} of {format_length(best.context)}"
    room = f" ({', '.join(held)})" if held else ""
    weights = "" if best.weight_dtype in FLOAT_WEIGHTS else f", {best.weight_dtype} weights"
    return f"{_setting(best)} cache{weights}: room for {asked}{room}."


def _held(one: SizeSolution, engine: str) -> float | None:
    users: float | None = getattr(one, f"{engine}_users")
    return users


def solution_table(solutions: Sequence[SizeSolution]) -> Table:
    """One line a setting that an engine serves."""
    several = len({one.weight_dtype for one in solutions}) > 1
    engines = [name for name in ENGINE_NAMES if any(getattr(one, f"{name}_users") is not None for one in solutions)]
    rows = [
        (
            f"{one.num_gpus}",
            _layout(one),
            one.kv_cache_dtype,
            *((one.weight_dtype,) if several else ()),
            f"{one.users:,}",
            format_length(one.context),
            *(_users(getattr(one, f"{name}_users")) for name in engines),
            f"{one.page_users:,}",
            format_bytes_short(one.kv_pool_bytes),
        )
        for one in solutions
    ]
    names = [ENGINE_NAMES[name] for name in engines]
    last = "; weights in other formats last" if several else ""
    margin = format_bytes_short(max(one.margin_bytes for one in solutions))
    return Table(
        title="What fits, best first",
        columns=(
            "GPUs",
            "layout",
            "cache",
            *(("weights",) if several else ()),
            "users",
            "context",
            *names,
            "pages",
            "room",
        ),
        rows=rows,
        spare=("pages", "room", "context"),
        note=f"Best: fewest GPUs, then the cache dtypes in the order tried{last}. {' and '.join(names)}: users of that "
        "context in the plan of its start; pages: that whole pages of the formula would hold. Room: for caches on a "
        f"GPU, give or take {margin}. Below, what starts the first line.",
    )


def _layout(one: SizeSetting) -> str:
    """`tp8`, `tp8 pp2 dcp8`, and `tp8 dpa8` for replicas of the attention alone (--enable-dp-attention)."""
    degrees = {"tp": one.tp, "pp": one.pp, "dpa" if one.enable_dp_attention else "dp": one.dp, "dcp": one.dcp}
    return " ".join(f"{name}{degree}" for name, degree in degrees.items() if degree > 1 or name == "tp")


def _setting(one: SizeSetting) -> str:
    return f"{one.num_gpus} GPU{'s' if one.num_gpus > 1 else ''} ({_layout(one)}), {one.kv_cache_dtype}"


def _users(count: float | None) -> str:
    return "-" if count is None else f"{count:,.2f}"


def wrapped_command(command: str) -> list[str]:
    """The command over lines that a shell takes as one: no flag is parted from its value."""
    words = shlex.split(command)
    pieces: list[str] = []
    for word in words:
        if pieces and pieces[-1].startswith("--") and not word.startswith("--") and " " not in pieces[-1]:
            pieces[-1] += f" {shlex.quote(word)}"
        else:
            pieces.append(shlex.quote(word))
    lines = [pieces[0]]
    for piece in pieces[1:]:
        if len(lines[-1]) + len(piece) + 3 > COMMAND_WIDTH:
            lines.append(f"    {piece}")
        else:
            lines[-1] += f" {piece}"
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]
